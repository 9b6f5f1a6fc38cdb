// The end of a block: its two branches' maps side by side, shuffled in two groups, so that their channels take turns.
#pragma once
#include <utility>

#include "unit.h"

namespace engine {

// a0 b0 a1 b1 ... of the first half of the lanes, or of the second.
template <class T, int second, int... lane>
typename Vector<T>::type taking_turns(typename Vector<T>::type a, typename Vector<T>::type b,
                                      std::integer_sequence<int, lane...>) {
  constexpr int lanes = Vector<T>::lanes;
  return __builtin_shufflevector(a, b, (second * lanes / 2 + lane / 2 + lane % 2 * lanes)...);
}

// Every other value of a and then of b, from `from` on.
template <class T, int from, int... lane>
typename Vector<T>::type every_other(typename Vector<T>::type a, typename Vector<T>::type b,
                                     std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(a, b, (2 * lane + from)...);
}

template <class T>
using Lanes = std::make_integer_sequence<int, static_cast<int>(Vector<T>::lanes)>;

// A branch's map: `row` values from one pixel to the next, of which the first are its channels.
template <class S, class T = Arithmetic<S>>
struct Branch {
  const S* map;
  Index row;
  Input<T> how;

  typename Vector<T>::type load(Index pixel, Index channel, Index count) const {
    return Vector<T>::load(map + pixel * row + channel, count);
  }
};

// What a vector of channels is normalised with; channels as they are pass a normalisation that leaves them so.
template <class T>
struct Constants {
  typename Vector<T>::type mean{}, factor{}, bias{};
  bool relu = false;
  Constants(const Input<T>& how, Index channel, Index count) {
    if (!how) return;
    mean = Vector<T>::load(how->mean + channel, count);
    factor = Vector<T>::load(how->factor.data() + channel, count);
    bias = Vector<T>::load(how->bias + channel, count);
    relu = how->relu;
  }
  typename Vector<T>::type of(typename Vector<T>::type x) const {
    const typename Vector<T>::type y = (x - mean) * factor + bias, zero{};
    return relu ? (y < zero ? zero : y) : y;  // a NaN stays one
  }
};

// Pixels whose values stay in the first cache, while one vector of channels after the other is worked on.
inline Index pixels_of_a_block(Index channels) { return std::clamp<Index>(2048 / channels, 8, 64); }

template <class S, class T = Arithmetic<S>>
ffi::Error join(ffi::ThreadPool& pool, Index pixels, Index channels, const Branch<S>& left, const Branch<S>& right, S* y) {
  using V = Vector<T>;
  const Rows rows(pixels, 2 * channels);
  const Index block = pixels_of_a_block(channels);
  parallel(pool, rows.pieces, [&](int i) {
    const Index end = rows.begin(i) + rows.in_piece(i);
    for (Index begin = rows.begin(i); begin < end; begin += block)
      for (Index c = 0; c < channels; c += V::lanes) {
        const Index count = std::min(V::lanes, channels - c);
        const Constants<T> of_left(left.how, c, count), of_right(right.how, c, count);
        for (Index p = begin; p < std::min(end, begin + block); p++) {
          typename V::type a = left.load(p, c, count), b = of_right.of(right.load(p, c, count));
          if (left.how) a = of_left.of(a);
          S* to = y + (p * channels + c) * 2;
          V::store(to, taking_turns<T, 0>(a, b, Lanes<T>{}), 2 * count);
          if (2 * count > V::lanes) V::store(to + V::lanes, taking_turns<T, 1>(a, b, Lanes<T>{}), 2 * count - V::lanes);
        }
      }
  });
  return ffi::Error::Success();
}

// The gradient of one branch: of its normalised map where the ReLU passes it, with its sums; or as it is.
template <class S, class T = Arithmetic<S>>
struct BranchGradient {
  S* values;
  Index row;
  T *sums, *products;
};

template <class T>
void add_lanes(typename Vector<T>::type v, double* to, Index count) {
  for (Index lane = 0; lane < count; lane++) to[lane] += static_cast<double>(v[lane]);
}

template <class S, class T = Arithmetic<S>>
ffi::Error join_gradient(ffi::ThreadPool& pool, Index pixels, Index channels, const S* dy, const Branch<S> (&branches)[2],
                         const BranchGradient<S> (&gradients)[2]) {
  using V = Vector<T>;
  const Rows rows(pixels, 2 * channels);
  const Index block = pixels_of_a_block(channels);
  std::vector<double> own(rows.pieces * 4 * channels);
  parallel(pool, rows.pieces, [&](int i) {
    const Index end = rows.begin(i) + rows.in_piece(i);
    for (Index begin = rows.begin(i); begin < end; begin += block)
      for (Index c = 0; c < channels; c += V::lanes) {
        const Index count = std::min(V::lanes, channels - c), more = 2 * count - V::lanes;
        const Constants<T> of[2] = {{branches[0].how, c, count}, {branches[1].how, c, count}};
        typename V::type sum[2] = {}, product[2] = {};
        for (Index p = begin; p < std::min(end, begin + block); p++) {
          const S* from = dy + (p * channels + c) * 2;
          const typename V::type a = V::load(from, 2 * count);
          const typename V::type b = more > 0 ? V::load(from + V::lanes, more) : typename V::type{};
          typename V::type d[2] = {every_other<T, 0>(a, b, Lanes<T>{}), every_other<T, 1>(a, b, Lanes<T>{})};
#pragma GCC unroll 2
          for (int branch = 0; branch < 2; branch++) {
            if (branches[branch].how) {
              const typename V::type zero{}, centred = branches[branch].load(p, c, count) - of[branch].mean;
              if (of[branch].relu) d[branch] = centred * of[branch].factor + of[branch].bias > zero ? d[branch] : zero;
              sum[branch] += d[branch];
              product[branch] += centred * d[branch];
            }
            V::store(gradients[branch].values + p * gradients[branch].row + c, d[branch], count);
          }
        }
        double* to = &own[i * 4 * channels + c];
        for (int branch = 0; branch < 2; branch++) {
          add_lanes<T>(sum[branch], to + branch * 2 * channels, count);
          add_lanes<T>(product[branch], to + (branch * 2 + 1) * channels, count);
        }
      }
  });
  for (int branch = 0; branch < 2; branch++)
    if (branches[branch].how)
      add_up_sums(own.data() + branch * 2 * channels, rows.pieces, 4 * channels, channels, gradients[branch].sums,
                  gradients[branch].products);
  return ffi::Error::Success();
}

// --- what XLA calls

constexpr const char* kJoinShapes =
    "a join needs two maps [n h w c] of one size, the left one possibly with more channels, the result with 2 c, and "
    "[c] for what they are normalised with";

inline bool same_pixels(ffi::Span<const int64_t> a, ffi::Span<const int64_t> b) {
  return a.size() == 4 && b.size() == 4 && std::equal(a.begin(), a.begin() + 3, b.begin());
}

// `vectors`: four for the right map, then, if the left one is normalised too, four for it.
inline ffi::Error Join(ffi::ThreadPool pool, ffi::AnyBuffer left, ffi::AnyBuffer right, ffi::RemainingArgs vectors,
                       ffi::Result<ffi::AnyBuffer> y, bool left_relu, bool right_relu) {
  const auto type = right.element_type(), own = arithmetic(type);
  const bool normalised = vectors.size() == 8;
  if (!same_pixels(left.dimensions(), right.dimensions()) || !same_pixels(y->dimensions(), right.dimensions()) ||
      right.element_count() == 0 || left.element_type() != type || y->element_type() != type)
    return refuse(kJoinShapes);
  const Index channels = right.dimensions()[3], row = left.dimensions()[3];
  if (y->dimensions()[3] != 2 * channels || row < channels || (normalised && row != channels) ||
      !(vectors.size() == 4 || normalised) || !are_vectors(vectors, 0, own, channels) ||
      (normalised && !are_vectors(vectors, 4, own, channels)))
    return refuse(kJoinShapes);
  return for_type(type, [&](auto zero) {
    using S = decltype(zero);
    using T = Arithmetic<S>;
    Branch<S> from_left{data<S>(left), row, {}}, from_right{data<S>(right), channels, {}};
    from_right.how = normalisation<T>(vectors, 0, channels, right_relu);
    if (normalised) from_left.how = normalisation<T>(vectors, 4, channels, left_relu);
    return join<S>(pool, right.element_count() / channels, channels, from_left, from_right, data<S>(y));
  });
}

// `others`: what the right map is normalised with and, if the left one is normalised too, that map and the same for it.
// Outcomes: the left gradient, among the first channels of a map that may have more; then, if the left map is
// normalised, its sums; then the right gradient and its sums.
inline ffi::Error JoinGradient(ffi::ThreadPool pool, ffi::AnyBuffer dy, ffi::AnyBuffer right, ffi::RemainingArgs others,
                               ffi::Result<ffi::AnyBuffer> dleft, ffi::RemainingRets outcomes, bool left_relu,
                               bool right_relu) {
  const auto type = right.element_type(), own = arithmetic(type);
  const bool normalised = others.size() == 9;
  if (!same_pixels(dy.dimensions(), right.dimensions()) || !same_pixels(dleft->dimensions(), right.dimensions()) ||
      right.element_count() == 0 || dy.element_type() != type || dleft->element_type() != type)
    return refuse(kJoinShapes);
  const Index channels = right.dimensions()[3], row = dleft->dimensions()[3];
  if (dy.dimensions()[3] != 2 * channels || row < channels || (normalised && row != channels) ||
      !(others.size() == 4 || normalised) || !are_vectors(others, 0, own, channels) ||
      (normalised && !are_vectors(others, 5, own, channels)))
    return refuse(kJoinShapes);
  const size_t first = normalised ? 2 : 0;
  if (outcomes.size() != first + 3) return refuse(kJoinShapes);
  for (size_t i = 0; i < outcomes.size(); i++) {
    auto buffer = outcomes.get<ffi::AnyBuffer>(i);
    if (!buffer.has_value() || !(i == first ? (*buffer)->element_type() == type &&
                                                  same_shape((*buffer)->dimensions(), right.dimensions())
                                            : is_vector(**buffer, own, channels)))
      return refuse(kJoinShapes);
  }
  if (normalised) {
    const auto left = others.get<ffi::AnyBuffer>(4);
    if (!left.has_value() || left->element_type() != type || !same_shape(left->dimensions(), right.dimensions()))
      return refuse(kJoinShapes);
  }
  return for_type(type, [&](auto zero) {
    using S = decltype(zero);
    using T = Arithmetic<S>;
    Branch<S> branches[2] = {{nullptr, row, {}}, {data<S>(right), channels, {}}};
    BranchGradient<S> gradients[2] = {{data<S>(dleft), row, nullptr, nullptr},
                                      {outcome<S>(outcomes, first), channels, outcome<T>(outcomes, first + 1),
                                       outcome<T>(outcomes, first + 2)}};
    branches[1].how = normalisation<T>(others, 0, channels, right_relu);
    if (normalised) {
      branches[0].map = data<S>(*others.get<ffi::AnyBuffer>(4));
      branches[0].how = normalisation<T>(others, 5, channels, left_relu);
      gradients[0].sums = outcome<T>(outcomes, 0);
      gradients[0].products = outcome<T>(outcomes, 1);
    }
    return join_gradient<S>(pool, right.element_count() / channels, channels, data<S>(dy), branches, gradients);
  });
}

}  // namespace engine
