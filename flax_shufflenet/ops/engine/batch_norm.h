// Batch normalisation by the batch's own statistics, with or without a ReLU after it, and its gradient.
#pragma once
#include "engine.h"

namespace engine {

// Rows of channels, cut into pieces for the threads. `together` rows are one long row, which fills vectors whatever
// the number of channels.
struct Rows {
  Index count, channels, together, of_a_piece;
  int pieces;
  Rows(Index count, Index channels) : count(count), channels(channels), together(1) {
    const Index fills = 16 / std::gcd<Index>(channels, 16);
    if (fills * channels <= 4096) {
      together = fills;
      while (together * channels < 128) together *= 2;
    }
    const Index wanted = pieces_for(count * channels);
    of_a_piece = (count + wanted - 1) / wanted;
    of_a_piece = (of_a_piece + together - 1) / together * together;
    pieces = static_cast<int>((count + of_a_piece - 1) / of_a_piece);
  }
  Index begin(int piece) const { return piece * of_a_piece; }
  Index in_piece(int piece) const { return std::min(of_a_piece, count - begin(piece)); }
};

template <class T>
void add_folded(double* sums, const T* values, Index channels, Index together) {
  for (Index r = 0; r < together; r++)
    for (Index c = 0; c < channels; c++) sums[c] += values[r * channels + c];
}

// The mean of each channel and the sum of squares about it, of blocks that fit the first cache, put together in
// double (Chan, Golub and LeVeque 1979): one pass over memory, and no cancellation at any mean.
struct Moments {
  double count = 0;
  std::vector<double> mean, squares;
  explicit Moments(Index channels) : mean(channels), squares(channels) {}
  void add(double n, const double* other_mean, const double* other_squares) {
    const double total = count + n;
    for (size_t c = 0; c < mean.size(); c++) {
      const double apart = other_mean[c] - mean[c];
      mean[c] += apart * (n / total);
      squares[c] += other_squares[c] + apart * apart * (count * n / total);
    }
    count = total;
  }
};

template <class S>
void add_block(Moments& moments, const S* x, Index rows, Index channels, Index together, double* space) {
  using T = Arithmetic<S>;
  const Index length = together * channels, steps = rows / together;
  T* sum = scratch<T>(3 * length, kConstants);
  T *middle = sum + length, *rest = middle + length;
  double *mean = space, *squares = mean + channels, *off = squares + channels;
  const double n = static_cast<double>(rows);
  std::fill(space, space + 3 * channels, 0.0);
  std::fill(sum, sum + length, T{0});
  Index step = 0;
  for (; step + 4 <= steps; step += 4) {
    const S* p = x + step * length;
#pragma GCC ivdep
    for (Index j = 0; j < length; j++) sum[j] += (p[j] + p[j + length]) + (p[j + 2 * length] + p[j + 3 * length]);
  }
  for (; step < steps; step++) {
    const S* p = x + step * length;
#pragma GCC ivdep
    for (Index j = 0; j < length; j++) sum[j] += p[j];
  }
  add_folded(mean, sum, channels, together);
  for (Index c = 0; c < channels; c++) middle[c] = static_cast<T>(mean[c] / n);
  for (Index r = 1; r < together; r++) std::memcpy(middle + r * channels, middle, channels * sizeof(T));
  std::fill(sum, sum + length, T{0});
  std::fill(rest, rest + length, T{0});
  for (step = 0; step + 2 <= steps; step += 2) {
    const S* p = x + step * length;
#pragma GCC ivdep
    for (Index j = 0; j < length; j++) {
      const T a = p[j] - middle[j], b = p[j + length] - middle[j];
      sum[j] += a * a + b * b;
      rest[j] += a + b;
    }
  }
  for (; step < steps; step++) {
    const S* p = x + step * length;
#pragma GCC ivdep
    for (Index j = 0; j < length; j++) {
      const T a = p[j] - middle[j];
      sum[j] += a * a;
      rest[j] += a;
    }
  }
  add_folded(squares, sum, channels, together);
  add_folded(off, rest, channels, together);
  // What is left about the rounded mean corrects both.
  for (Index c = 0; c < channels; c++) {
    const double correction = off[c] / n;
    mean[c] = middle[c] + correction;
    squares[c] = std::max(squares[c] - n * correction * correction, 0.0);  // in this order a NaN stays one
  }
  moments.add(n, mean, squares);
}

template <class S>
void add_rows(Moments& moments, const S* x, Index rows, Index channels, Index together) {
  std::vector<double> space(3 * channels);
  const Index whole = rows / together * together;
  const Index block = std::max<Index>(4, 8192 / (together * channels)) * together;
  for (Index r = 0; r < whole; r += block)
    add_block(moments, x + r * channels, std::min(block, whole - r), channels, together, space.data());
  if (whole < rows) add_block(moments, x + whole * channels, rows - whole, channels, 1, space.data());
}

template <bool relu, class S, class Y, class T = Arithmetic<S>>
void normalise_rows(const S* x, Y* y, Index rows, Index channels, Index together, const T* mean, const T* factor,
                    const T* bias) {
  if (rows < together) together = 1;
  const Index length = together * channels;
  T* means = scratch<T>(3 * length, kConstants);
  T *factors = means + length, *biases = factors + length;
  repeat(means, mean, channels, together);
  repeat(factors, factor, channels, together);
  repeat(biases, bias, channels, together);
  Index r = 0;
  for (; r + together <= rows; r += together) {
    const S* p = x + r * channels;
    Y* out = y + r * channels;
#pragma GCC ivdep
    for (Index j = 0; j < length; j++) {
      const T value = (p[j] - means[j]) * factors[j] + biases[j];
      out[j] = relu && value < 0 ? T{0} : value;  // a NaN stays one
    }
  }
  if (r < rows) normalise_rows<relu>(x + r * channels, y + r * channels, rows - r, channels, 1, mean, factor, bias);
}

// The statistics of all pieces; zeros where nothing was measured.
template <class T>
void finish(const std::vector<Moments>& parts, double epsilon, bool measured, T* mean, T* var, T* inverse) {
  const Index channels = parts[0].mean.size();
  if (!measured) {
    for (T* vector : {mean, var, inverse}) std::fill(vector, vector + channels, T{0});
    return;
  }
  Moments all(channels);
  for (const Moments& part : parts) all.add(part.count, part.mean.data(), part.squares.data());
  for (Index c = 0; c < channels; c++) {
    const double variance = all.squares[c] / all.count;
    mean[c] = static_cast<T>(all.mean[c]);
    var[c] = static_cast<T>(variance);
    inverse[c] = static_cast<T>(1 / std::sqrt(variance + epsilon));
  }
}

constexpr const char* kMaps = "batch normalisation needs maps of [n h w c], none of them 0, all alike";
constexpr const char* kVectors = "batch normalisation needs vectors of [c] in what the map is computed in";

inline bool is_map(const ffi::AnyBuffer& x) { return x.dimensions().size() == 4 && x.element_count() > 0; }

template <class Buffer>
bool is_like(const Buffer& buffer, const ffi::AnyBuffer& x) {
  return buffer.element_type() == x.element_type() && same_shape(buffer.dimensions(), x.dimensions());
}

template <class... Buffers>
bool are_channels_of(const ffi::AnyBuffer& x, const Buffers&... vectors) {
  return (is_vector(vectors, arithmetic(x.element_type()), x.dimensions().back()) && ...);
}

inline Rows rows_of(const ffi::AnyBuffer& x) {
  const Index channels = x.dimensions().back();
  return Rows(x.element_count() / channels, channels);
}

// What a value's difference from the mean is multiplied with.
template <class T>
std::vector<T> factor_of(const T* scale, const T* inverse, Index channels) {
  std::vector<T> factor(channels);
  for (Index c = 0; c < channels; c++) factor[c] = scale[c] * inverse[c];
  return factor;
}

template <class S, class T = Arithmetic<S>>
ffi::Error statistics(ffi::ThreadPool& pool, const S* x, T* mean, T* var, T* inverse, const Rows& rows,
                      double epsilon) {
  std::vector<Moments> parts(rows.pieces, Moments(rows.channels));
  parallel(pool, rows.pieces, [&](int i) {
    add_rows(parts[i], x + rows.begin(i) * rows.channels, rows.in_piece(i), rows.channels, rows.together);
  });
  finish(parts, epsilon, true, mean, var, inverse);
  return ffi::Error::Success();
}

inline ffi::Error BatchNormStatistics(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> mean,
                                      ffi::Result<ffi::AnyBuffer> var, ffi::Result<ffi::AnyBuffer> inverse,
                                      double epsilon) {
  if (!is_map(x)) return refuse(kMaps);
  if (!are_channels_of(x, *mean, *var, *inverse)) return refuse(kVectors);
  return for_type(x.element_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Arithmetic<S>;
    return statistics<S>(pool, data<S>(x), data<T>(mean), data<T>(var), data<T>(inverse), rows_of(x), epsilon);
  });
}

template <class S, class T = Arithmetic<S>>
ffi::Error normalise(ffi::ThreadPool& pool, const S* x, const T* mean, const T* inverse, const T* scale, const T* bias,
                     S* y, const Rows& rows, bool relu) {
  const std::vector<T> factor = factor_of(scale, inverse, rows.channels);
  parallel(pool, rows.pieces, [&](int i) {
    i = rows.pieces - 1 - i;  // what the statistics read last is still in the cache
    const Index start = rows.begin(i) * rows.channels;
    (relu ? normalise_rows<true, S, S> : normalise_rows<false, S, S>)(
        x + start, y + start, rows.in_piece(i), rows.channels, rows.together, mean, factor.data(), bias);
  });
  return ffi::Error::Success();
}

inline ffi::Error BatchNorm(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer mean, ffi::AnyBuffer inverse,
                            ffi::AnyBuffer scale, ffi::AnyBuffer bias, ffi::Result<ffi::AnyBuffer> y, bool relu) {
  if (!is_map(x) || !is_like(*y, x)) return refuse(kMaps);
  if (!are_channels_of(x, mean, inverse, scale, bias)) return refuse(kVectors);
  return for_type(x.element_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Arithmetic<S>;
    return normalise<S>(pool, data<S>(x), data<T>(mean), data<T>(inverse), data<T>(scale), data<T>(bias), data<S>(y),
                        rows_of(x), relu);
  });
}

template <bool relu, class T>
inline T passed(T gradient, T centred, T factor, T bias) {
  return !relu || centred * factor + bias > 0 ? gradient : T{0};
}

// Adds, for each channel, the gradients that pass the ReLU, and these times the centred values; if `keep`, writes those
// that pass in their place.
template <bool relu, bool keep, class S, class D, class T = Arithmetic<S>>
void add_gradients(const S* x, D* dy, Index rows, Index channels, Index together, const T* mean, const T* factor,
                   const T* bias, double* gradients, double* products) {
  if (rows < together) together = 1;
  const Index length = together * channels, steps = rows / together;
  T* means = scratch<T>(5 * length, kConstants);
  T *factors = means + length, *biases = factors + length, *sum = biases + length, *product = sum + length;
  repeat(means, mean, channels, together);
  repeat(factors, factor, channels, together);
  repeat(biases, bias, channels, together);
  const Index block = std::max<Index>(4, 8192 / length) / 2 * 2;
  for (Index first = 0; first < steps; first += block) {
    const Index end = std::min(steps, first + block);
    Index step = first;
    std::fill(sum, sum + 2 * length, T{0});
    for (; step + 2 <= end; step += 2) {
      const S* p = x + step * length;
      D* d = dy + step * length;
#pragma GCC ivdep
      for (Index j = 0; j < length; j++) {
        const T a = p[j] - means[j], b = p[j + length] - means[j];
        const T g = passed<relu, T>(d[j], a, factors[j], biases[j]);
        const T h = passed<relu, T>(d[j + length], b, factors[j], biases[j]);
        if constexpr (keep) {
          d[j] = g;
          d[j + length] = h;
        }
        sum[j] += g + h;
        product[j] += a * g + b * h;
      }
    }
    for (; step < end; step++) {
      const S* p = x + step * length;
      D* d = dy + step * length;
#pragma GCC ivdep
      for (Index j = 0; j < length; j++) {
        const T a = p[j] - means[j], g = passed<relu, T>(d[j], a, factors[j], biases[j]);
        if constexpr (keep) d[j] = g;
        sum[j] += g;
        product[j] += a * g;
      }
    }
    add_folded(gradients, sum, channels, together);
    add_folded(products, product, channels, together);
  }
  const Index done = steps * together;
  if (done < rows)
    add_gradients<relu, keep>(x + done * channels, dy + done * channels, rows - done, channels, 1, mean, factor, bias,
                        gradients, products);
}

template <bool relu, class S, class D, class T = Arithmetic<S>>
void input_gradient_rows(const S* x, const S* dy, D* dx, Index rows, Index channels, Index together, const T* mean,
                         const T* factor, const T* bias, const T* per_centred, const T* per_value) {
  if (rows < together) together = 1;
  const Index length = together * channels;
  T* means = scratch<T>(5 * length, kConstants);
  T *factors = means + length, *biases = factors + length, *centreds = biases + length, *values = centreds + length;
  repeat(means, mean, channels, together);
  repeat(factors, factor, channels, together);
  repeat(biases, bias, channels, together);
  repeat(centreds, per_centred, channels, together);
  repeat(values, per_value, channels, together);
  Index r = 0;
  for (; r + together <= rows; r += together) {
    const S *p = x + r * channels, *d = dy + r * channels;
    D* out = dx + r * channels;
#pragma GCC ivdep
    for (Index j = 0; j < length; j++) {
      const T a = p[j] - means[j], g = passed<relu, T>(d[j], a, factors[j], biases[j]);
      out[j] = g * factors[j] + a * centreds[j] + values[j];
    }
  }
  if (r < rows)
    input_gradient_rows<relu>(x + r * channels, dy + r * channels, dx + r * channels, rows - r, channels, 1, mean,
                              factor, bias, per_centred, per_value);
}

// What a normalisation's input gradient is put together from (Ioffe and Szegedy 2015, section 3).
template <class T>
struct Coefficients {
  std::vector<T> factor, per_centred, per_value;
  explicit Coefficients(Index channels) : factor(channels), per_centred(channels), per_value(channels) {}
  void set(Index c, double gradient, double product, T scale, T inverse, double count) {
    const double f = factor[c] = scale * inverse;
    per_centred[c] = static_cast<T>(-f * inverse * (product * inverse) / count);
    per_value[c] = static_cast<T>(-f * gradient / count);
  }
};

template <class S, class T = Arithmetic<S>>
ffi::Error gradient_sums(ffi::ThreadPool& pool, const S* dy, const S* x, const T* mean, const T* inverse,
                         const T* scale, const T* bias, T* sum, T* product, const Rows& rows, bool relu) {
  const Index channels = rows.channels;
  const std::vector<T> factor = factor_of(scale, inverse, channels);
  std::vector<double> sums(rows.pieces * 2 * channels);
  parallel(pool, rows.pieces, [&](int i) {
    const Index start = rows.begin(i) * channels;
    double* own = &sums[i * 2 * channels];
    (relu ? add_gradients<true, false, S, const S> : add_gradients<false, false, S, const S>)(
        x + start, dy + start, rows.in_piece(i), channels, rows.together, mean, factor.data(), bias, own,
        own + channels);
  });
  add_up(sums.data(), rows.pieces, 2 * channels, channels, sum);
  add_up(sums.data() + channels, rows.pieces, 2 * channels, channels, product);
  return ffi::Error::Success();
}

inline ffi::Error BatchNormGradientSums(ffi::ThreadPool pool, ffi::AnyBuffer dy, ffi::AnyBuffer x, ffi::AnyBuffer mean,
                                        ffi::AnyBuffer inverse, ffi::AnyBuffer scale, ffi::AnyBuffer bias,
                                        ffi::Result<ffi::AnyBuffer> sum, ffi::Result<ffi::AnyBuffer> product,
                                        bool relu) {
  if (!is_map(x) || !is_like(dy, x)) return refuse(kMaps);
  if (!are_channels_of(x, mean, inverse, scale, bias, *sum, *product)) return refuse(kVectors);
  return for_type(x.element_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Arithmetic<S>;
    return gradient_sums<S>(pool, data<S>(dy), data<S>(x), data<T>(mean), data<T>(inverse), data<T>(scale),
                            data<T>(bias), data<T>(sum), data<T>(product), rows_of(x), relu);
  });
}

template <class S, class T = Arithmetic<S>>
ffi::Error input_gradient(ffi::ThreadPool& pool, const S* dy, const S* x, const T* mean, const T* inverse,
                          const T* scale, const T* bias, const T* per_centred, const T* per_value, S* dx,
                          const Rows& rows, bool relu) {
  const std::vector<T> factor = factor_of(scale, inverse, rows.channels);
  parallel(pool, rows.pieces, [&](int i) {
    i = rows.pieces - 1 - i;  // what the sums read last is still in the cache
    const Index start = rows.begin(i) * rows.channels;
    (relu ? input_gradient_rows<true, S, S> : input_gradient_rows<false, S, S>)(
        x + start, dy + start, dx + start, rows.in_piece(i), rows.channels, rows.together, mean, factor.data(), bias,
        per_centred, per_value);
  });
  return ffi::Error::Success();
}

inline ffi::Error BatchNormInputGradient(ffi::ThreadPool pool, ffi::AnyBuffer dy, ffi::AnyBuffer x, ffi::AnyBuffer mean,
                                         ffi::AnyBuffer inverse, ffi::AnyBuffer scale, ffi::AnyBuffer bias,
                                         ffi::AnyBuffer per_centred, ffi::AnyBuffer per_value,
                                         ffi::Result<ffi::AnyBuffer> dx, bool relu) {
  if (!is_map(x) || !is_like(dy, x) || !is_like(*dx, x)) return refuse(kMaps);
  if (!are_channels_of(x, mean, inverse, scale, bias, per_centred, per_value)) return refuse(kVectors);
  return for_type(x.element_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Arithmetic<S>;
    return input_gradient<S>(pool, data<S>(dy), data<S>(x), data<T>(mean), data<T>(inverse), data<T>(scale),
                             data<T>(bias), data<T>(per_centred), data<T>(per_value), data<S>(dx), rows_of(x), relu);
  });
}

}  // namespace engine
