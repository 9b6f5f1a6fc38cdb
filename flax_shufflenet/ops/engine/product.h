// Matrix products of a block of rows, which lies in the cache, with a matrix whose rows are filled up to whole vectors.
#pragma once
#include "engine.h"

namespace engine {

template <class T>
Index up_to_whole_vectors(Index count) {
  return (count + Vector<T>::lanes - 1) / Vector<T>::lanes * Vector<T>::lanes;
}

// A matrix [depth][columns], or its transpose, in T, with zeros after each row.
template <class T>
struct Packed {
  Index row;
  std::vector<T> values;
  template <class S>
  Packed(const S* matrix, Index depth, Index columns, bool transposed)
      : row(up_to_whole_vectors<T>(transposed ? depth : columns)), values((transposed ? columns : depth) * row) {
    for (Index d = 0; d < depth; d++)
      for (Index c = 0; c < columns; c++) values[transposed ? c * row + d : d * row + c] = matrix[d * columns + c];
  }
};

// Row r and column k of the left matrix lie at r * row + k * step.
template <class T>
struct Left {
  const T* values;
  Index row, step;
  Left transposed() const { return {values, step, row}; }
};

// What sums begin with, and what becomes of them.
template <class T>
struct Ends {
  bool add = false;         // to what is there
  const T* bias = nullptr;  // or with a vector, filled up to whole vectors, where there is one
  bool relu = false;
  Ends from(Index column) const { return {add, bias ? bias + column : nullptr, relu}; }
};

// `rows` rows and `vectors` vectors of columns, of the last of which `last` values are wanted.
template <int rows, int vectors, class T, class S>
void product_tile(const Left<T>& a, const T* b, Index b_row, Index depth, S* c, Index c_row, Index last,
                  const Ends<T>& ends) {
  using V = Vector<T>;
  typename V::type sum[rows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
      const S* from = c + r * c_row + v * V::lanes;
      if (ends.bias)
        sum[r][v] = V::load(ends.bias + v * V::lanes);
      else
        sum[r][v] = !ends.add ? typename V::type{} : v + 1 < vectors ? V::load(from) : V::load(from, last);
    }
  for (Index k = 0; k < depth; k++) {
    typename V::type right[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) right[v] = V::load(b + k * b_row + v * V::lanes);
    const T* left = a.values + k * a.step;
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
      const T value = left[r * a.row];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) sum[r][v] += value * right[v];
    }
  }
  const typename V::type zero{};
#pragma GCC unroll 16
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
      S* to = c + r * c_row + v * V::lanes;
      if (ends.relu) sum[r][v] = sum[r][v] < zero ? zero : sum[r][v];  // a NaN stays one
      if (v + 1 < vectors)
        V::store(to, sum[r][v]);
      else
        V::store(to, sum[r][v], last);
    }
}

template <int most, int vectors, class T, class S>
void product_rows(Index rows, Left<T> a, const T* b, Index b_row, Index depth, S* c, Index c_row, Index last,
                  const Ends<T>& ends) {
  for (; rows >= most; rows -= most, a.values += most * a.row, c += most * c_row)
    product_tile<most, vectors>(a, b, b_row, depth, c, c_row, last, ends);
  if constexpr (most > 1)
    if (rows) product_rows<most / 2, vectors>(rows, a, b, b_row, depth, c, c_row, last, ends);
}

// c = a b, from and to its `ends`, for `rows` rows and `columns` columns. b may be read up to a vector beyond each row's
// end; what lies there does not matter.
template <class T, class S>
void product(Index rows, Index columns, const Left<T>& a, const T* b, Index b_row, Index depth, S* c, Index c_row,
             const Ends<T>& ends) {
  constexpr Index lanes = Vector<T>::lanes, widest = kRegisters == 32 ? 4 : 3;
  // A tile's sums, a row of the right matrix and one value of the left fit the registers.
  constexpr bool many = kRegisters == 32;
  for (Index n = 0; n < columns;) {
    const Index left = (columns - n + lanes - 1) / lanes;
    const Index vectors = left <= widest ? left : left % widest == 1 ? widest - 1 : widest;
    const Index last = std::min(lanes, columns - n - (vectors - 1) * lanes);
    if (vectors == 1)
      product_rows<many ? 12 : 8, 1>(rows, a, b + n, b_row, depth, c + n, c_row, last, ends.from(n));
    else if (vectors == 2)
      product_rows<many ? 12 : 6, 2>(rows, a, b + n, b_row, depth, c + n, c_row, last, ends.from(n));
    else if (vectors == 3)
      product_rows<many ? 8 : 4, 3>(rows, a, b + n, b_row, depth, c + n, c_row, last, ends.from(n));
    else if constexpr (many)
      product_rows<6, 4>(rows, a, b + n, b_row, depth, c + n, c_row, last, ends.from(n));
    n += vectors * lanes;
  }
}

}  // namespace engine
