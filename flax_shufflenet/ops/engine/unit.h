// Units of a block: a convolution, and the statistics of the batch normalisation that follows it. A map is normalised,
// and rectified, where it is read: the normalised map never lies in memory.
//
// A gradient comes as that of the normalised map where its ReLU passes it, with its sum and the sum of its products with
// the centred map, a channel each, from whoever read the map.
#pragma once
#include <optional>

#include "batch_norm.h"
#include "depthwise.h"
#include "product.h"

namespace engine {

// How a map is normalised where it is read.
template <class T>
struct Normalisation {
  const T *mean, *inverse, *scale, *bias;
  bool relu;
  std::vector<T> factor;

  template <class S>
  void rows(const S* x, T* y, Index count, const Rows& as) const {
    (relu ? normalise_rows<true, S, T> : normalise_rows<false, S, T>)(x, y, count, as.channels, as.together, mean,
                                                                      factor.data(), bias);
  }
  // Keeps the gradients that the ReLU passes, and adds them up.
  template <class S>
  void pass(const S* x, S* gradients, Index count, const Rows& as, double* sums) const {
    (relu ? add_gradients<true, true, S, S> : add_gradients<false, true, S, S>)(
        x, gradients, count, as.channels, as.together, mean, factor.data(), bias, sums, sums + as.channels);
  }
};

// Buffers from `first` on: mean, inverse deviation, scale and bias, all [channels].
inline bool are_vectors(const ffi::RemainingArgs& arguments, size_t first, ffi::DataType type, Index channels) {
  for (size_t i = first; i < first + 4; i++) {
    const auto buffer = arguments.get<ffi::AnyBuffer>(i);
    if (!buffer.has_value() || !is_vector(*buffer, type, channels)) return false;
  }
  return true;
}

template <class T>
Normalisation<T> normalisation(const ffi::RemainingArgs& arguments, size_t first, Index channels, bool relu) {
  const T* vectors[4];
  for (size_t i = 0; i < 4; i++) vectors[i] = data<T>(*arguments.get<ffi::AnyBuffer>(first + i));
  return Normalisation<T>{vectors[0], vectors[1], vectors[2], vectors[3], relu,
                          factor_of(vectors[2], vectors[1], channels)};
}

template <class T>
using Input = std::optional<Normalisation<T>>;

// The gradient of a normalised map, from which that of the map itself follows.
template <class S>
struct Gradient {
  using T = Arithmetic<S>;
  const S *values, *map;
  const T* mean;
  Coefficients<T> of;

  Gradient(const S* values, const S* map, const T* mean, const T* inverse, const T* scale, const T* sums,
           const T* products, Index rows, Index channels)
      : values(values), map(map), mean(mean), of(channels) {
    for (Index c = 0; c < channels; c++)
      of.set(c, sums[c], products[c], scale[c], inverse[c], static_cast<double>(rows));
  }
  // That of `count` rows of the map, from row `first` on.
  void rows(T* to, Index first, Index count, const Rows& as) const {
    const T* unused = mean;  // there is no ReLU left to ask for its bias
    input_gradient_rows<false>(map + first * as.channels, values + first * as.channels, to, count, as.channels,
                               as.together, mean, of.factor.data(), unused, of.per_centred.data(), of.per_value.data());
  }
};

// A gradient's two sums, which lie side by side in each piece's.
template <class T>
void add_up_sums(const double* parts, int count, Index apart, Index channels, T* sums, T* products) {
  add_up(parts, count, apart, channels, sums);
  add_up(parts + channels, count, apart, channels, products);
}

// Rows of a product that stay in the second cache with what comes of them.
inline Index rows_of_a_block(Index channels) {
  return std::clamp<Index>(32768 / channels / 16 * 16, 16, 256);
}

// --- pointwise

// A map whose channels from `first` on, `depth` of them, are multiplied with a kernel of [depth][outputs].
struct Pointwise {
  Index rows, channels, first, depth, outputs;
  Index block() const { return rows_of_a_block(std::max(depth, outputs)); }
};

// `count` rows of x from row r on, in what is computed in, and normalised where they are to be.
template <class S, class T>
Left<T> rows_to_multiply(const Pointwise& size, const S* x, const Input<T>& input, Index r, Index count, const Rows& in) {
  const S* from = x + r * size.channels + size.first;
  if constexpr (std::is_same_v<S, T>)
    if (!input) return {from, size.channels, 1};
  T* to = scratch<T>(size.block() * size.depth, kInput);
  if (input)
    input->rows(from, to, count, in);
  else
    for (Index i = 0; i < count; i++) copy(from + i * size.channels, to + i * size.depth, size.depth);
  return {to, size.depth, 1};
}

template <class S, class T = Arithmetic<S>>
ffi::Error pointwise_unit(ffi::ThreadPool& pool, const Pointwise& size, const S* x, const Input<T>& input,
                          const S* kernel, double epsilon, bool measure, S* z, T* mean, T* var,
                          T* inverse) {
  const Packed<T> packed(kernel, size.depth, size.outputs, false);
  const Rows in(size.rows, size.depth), out(size.rows, size.outputs);
  std::vector<Moments> parts(out.pieces, Moments(size.outputs));
  parallel(pool, out.pieces, [&](int i) {
    const Index end = out.begin(i) + out.in_piece(i);
    for (Index r = out.begin(i); r < end; r += size.block()) {
      const Index count = std::min(size.block(), end - r);
      const Left<T> left = rows_to_multiply(size, x, input, r, count, in);
      product(count, size.outputs, left, packed.values.data(), packed.row, size.depth, z + r * size.outputs,
              size.outputs, {});
      if (measure) add_rows(parts[i], z + r * size.outputs, count, size.outputs, out.together);
    }
  });
  finish(parts, epsilon, measure, mean, var, inverse);
  return ffi::Error::Success();
}

template <class S, class T = Arithmetic<S>>
ffi::Error pointwise_unit_gradient(ffi::ThreadPool& pool, const Pointwise& size, const Gradient<S>& gradient,
                                   const S* x, const Input<T>& input, const S* kernel, bool add, S* dx,
                                   S* dkernel, T* sums, T* products) {
  constexpr Index most_values = 1 << 21;  // that the pieces' kernel gradients take together
  constexpr Index most_rows = 512;        // that are added up before double takes over
  const Packed<T> transposed(kernel, size.depth, size.outputs, true);
  const Rows in(size.rows, size.depth), out(size.rows, size.outputs);
  const Index row = up_to_whole_vectors<T>(size.outputs), values = size.depth * row;
  const int pieces = static_cast<int>(std::clamp<Index>(most_values / values, 1, out.pieces));
  double* kernels = scratch<double>(pieces * values, kOfAllPieces);
  std::vector<double> own_sums(pieces * 2 * size.depth);
  parallel(pool, pieces, [&](int i) {
    const Index begin = out.begin(out.pieces * i / pieces), last = out.pieces * (i + 1) / pieces - 1;
    const Index end = out.begin(last) + out.in_piece(last);
    T* gradients = scratch<T>(size.block() * size.outputs, kGradient);
    T* of_kernel = scratch<T>(values, kKernel);
    double* own_kernel = kernels + i * values;
    Index added = 0, flushed = 0;
    const auto flush = [&] {
      if (flushed++)
        for (Index j = 0; j < values; j++) own_kernel[j] += static_cast<double>(of_kernel[j]);
      else
        for (Index j = 0; j < values; j++) own_kernel[j] = static_cast<double>(of_kernel[j]);
      added = 0;
    };
    for (Index r = begin; r < end; r += size.block()) {
      const Index count = std::min(size.block(), end - r);
      gradient.rows(gradients, r, count, out);
      const Left<T> left = rows_to_multiply(size, x, input, r, count, in);
      if (added + count > most_rows) flush();
      product(size.depth, size.outputs, left.transposed(), gradients, size.outputs, count, of_kernel, row,
              {added > 0});
      added += count;
      S* to = dx + r * size.channels + size.first;
      product(count, size.depth, Left<T>{gradients, size.outputs, 1}, transposed.values.data(), transposed.row,
              size.outputs, to, size.channels, {add});
      if (input) input->pass(x + r * size.depth, to, count, in, &own_sums[i * 2 * size.depth]);
    }
    flush();
  });
  for (int i = 1; i < pieces; i++)
    for (Index j = 0; j < values; j++) kernels[j] += kernels[i * values + j];
  for (Index d = 0; d < size.depth; d++)
    for (Index o = 0; o < size.outputs; o++) dkernel[d * size.outputs + o] = static_cast<S>(kernels[d * row + o]);
  if (input) add_up_sums(own_sums.data(), pieces, 2 * size.depth, size.depth, sums, products);
  return ffi::Error::Success();
}

// --- depthwise

// Pads images, which are normalised on the way where they are to be. Mean, factor and bias are repeated over as many
// pixels as fill whole vectors.
template <class T>
class NormalisedRows {
 public:
  NormalisedRows(const Input<T>& input, Index channels)
      : normalises_(input.has_value()), relu_(input && input->relu), length_(std::lcm(channels, Vector<T>::lanes)) {
    if (!input) return;
    repeated_.resize(3 * length_);
    const T* vectors[] = {input->mean, input->factor.data(), input->bias};
    for (int i = 0; i < 3; i++) repeat(&repeated_[i * length_], vectors[i], channels, length_ / channels);
  }
  template <class S>
  void fill(Padded<T>& padded, const Image& image, const S* x) const {
    if (!normalises_) return padded.fill(image, x, image.channels, kPadded);
    padded.fill(image, x, image.channels, kPadded,
                [this](const S* from, T* to, Index count) { row(from, to, count); });
  }

 private:
  // `count` values from the first channel of a pixel on, few enough for the first cache.
  template <class S>
  void row(const S* x, T* y, Index count) const {
    using V = Vector<T>;
    const typename V::type zero{};
    for (Index j = 0; j < std::min(length_, count); j += V::lanes) {
      const typename V::type means = V::load(&repeated_[j]), factors = V::load(&repeated_[length_ + j]),
                             biases = V::load(&repeated_[2 * length_ + j]);
      for (Index f = j; f < count; f += length_) {
        const typename V::type value = (V::load(x + f, count - f) - means) * factors + biases;
        V::store(y + f, relu_ ? (value < zero ? zero : value) : value, count - f);  // a NaN stays one
      }
    }
  }

  bool normalises_, relu_;
  Index length_;
  std::vector<T> repeated_;
};

template <class S, class T = Arithmetic<S>>
ffi::Error depthwise_unit(ffi::ThreadPool& pool, const Image& image, const S* x, const Input<T>& input,
                          const S* kernel, double epsilon, bool measure, S* z, T* mean, T* var,
                          T* inverse) {
  const Taps<T> taps(kernel, image, false);
  const Rows out(image.out_height * image.out_width, image.channels);
  const NormalisedRows<T> rows(input, image.channels);
  std::vector<Moments> parts(image.pieces(), Moments(image.channels));
  parallel(pool, image.pieces(), [&](int i) {
    Padded<T> padded(image, image.channels);
    for (Index n = image.begin(i); n < image.begin(i + 1); n++) {
      rows.fill(padded, image, x + n * image.in_size());
      S* to = z + n * image.out_size();
      (image.side == 3 ? convolve<3, S> : convolve<0, S>)(image, padded, taps, to);
      if (measure) add_rows(parts[i], to, out.count, image.channels, out.together);
    }
  });
  finish(parts, epsilon, measure, mean, var, inverse);
  return ffi::Error::Success();
}

template <class S, class T = Arithmetic<S>>
ffi::Error depthwise_unit_gradient(ffi::ThreadPool& pool, const Image& image, const Gradient<S>& gradient, const S* x,
                                   const Input<T>& input, const S* kernel, S* dx, S* dkernel, T* sums, T* products) {
  const Index channels = image.channels, count = image.side * image.side;
  const Index length = std::lcm(channels, Vector<T>::lanes);
  const Taps<T> taps(kernel, image, image.stride == 1);
  const Rows in(image.height * image.width, channels), out(image.out_height * image.out_width, channels);
  const NormalisedRows<T> rows(input, channels);
  std::vector<double> kernels(image.pieces() * count * channels), own_sums(image.pieces() * 2 * channels);
  parallel(pool, image.pieces(), [&](int i) {
    Padded<T> padded(image, channels);
    std::vector<double> own(count * length);
    for (Index n = image.begin(i); n < image.begin(i + 1); n++) {
      const S* map = x + n * image.in_size();
      S* to = dx + n * image.in_size();
      T* gradients = scratch<T>(image.out_size(), kGradient);
      gradient.rows(gradients, n * out.count, out.count, out);
      rows.fill(padded, image, map);
      add_all_taps(image, padded, gradients, length, own.data());
      if (image.stride == 1) {
        padded.fill(image, gradients, channels, kPadded);
        (image.side == 3 ? convolve<3, S> : convolve<0, S>)(image, padded, taps, to);
      } else {
        strided_input_gradient(image, taps, gradients, to);
      }
      if (input) input->pass(map, to, in.count, in, &own_sums[i * 2 * channels]);
    }
    for (Index tap = 0; tap < count; tap++)
      add_folded(&kernels[(i * count + tap) * channels], &own[tap * length], channels, length / channels);
  });
  add_up(kernels.data(), image.pieces(), count * channels, count * channels, dkernel);
  if (input) add_up_sums(own_sums.data(), image.pieces(), 2 * channels, channels, sums, products);
  return ffi::Error::Success();
}

// --- what XLA calls

constexpr const char* kUnitVectors =
    "a unit needs [c] for what its input is normalised with and for its statistics, in what its input is computed in";

template <class Z>
bool are_statistics(Z& z, ffi::Result<ffi::AnyBuffer>* const (&vectors)[3]) {
  for (auto* vector : vectors)
    if (!is_vector(**vector, arithmetic(z->element_type()), z->dimensions().back())) return false;
  return true;
}

inline bool read_pointwise(Pointwise& size, const ffi::AnyBuffer& x, const ffi::AnyBuffer& kernel,
                           ffi::Span<const int64_t> z, int64_t first) {
  const auto in = x.dimensions(), k = kernel.dimensions();
  if (in.size() != 4 || x.element_count() == 0 || k.size() != 4 || k[0] != 1 || k[1] != 1 || z.size() != 4) return false;
  size = {static_cast<Index>(x.element_count()) / in[3], in[3], first, k[2], k[3]};
  return kernel.element_type() == x.element_type() && size.depth > 0 && size.outputs > 0 && first >= 0 &&
         first + size.depth <= size.channels && std::equal(in.begin(), in.begin() + 3, z.begin()) &&
         z[3] == size.outputs;
}

constexpr const char* kPointwiseShapes =
    "a pointwise unit needs x [n h w c], kernel [1 1 d o] with d channels in x from the first on, and z [n h w o]";

inline ffi::Error PointwiseUnit(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer kernel, ffi::RemainingArgs input,
                                ffi::Result<ffi::AnyBuffer> z, ffi::Result<ffi::AnyBuffer> mean,
                                ffi::Result<ffi::AnyBuffer> var, ffi::Result<ffi::AnyBuffer> inverse, double epsilon,
                                bool measure, bool relu, int64_t first) {
  const auto type = x.element_type();
  Pointwise size;
  if (z->element_type() != type || !read_pointwise(size, x, kernel, z->dimensions(), first))
    return refuse(kPointwiseShapes);
  const bool normalised = input.size() == 4 && size.depth == size.channels && are_vectors(input, 0, arithmetic(type), size.depth);
  if (!are_statistics(z, {&mean, &var, &inverse}) || (input.size() && !normalised)) return refuse(kUnitVectors);
  return for_type(type, [&](auto zero) {
    using S = decltype(zero);
    using T = Arithmetic<S>;
    Input<T> how;
    if (normalised) how = normalisation<T>(input, 0, size.depth, relu);
    return pointwise_unit<S>(pool, size, data<S>(x), how, data<S>(kernel), epsilon, measure, data<S>(z),
                             data<T>(mean), data<T>(var), data<T>(inverse));
  });
}

inline ffi::Error DepthwiseUnit(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer kernel, ffi::RemainingArgs input,
                                ffi::Result<ffi::AnyBuffer> z, ffi::Result<ffi::AnyBuffer> mean,
                                ffi::Result<ffi::AnyBuffer> var, ffi::Result<ffi::AnyBuffer> inverse, double epsilon,
                                bool measure, bool relu, int64_t stride) {
  const auto type = x.element_type();
  Image image;
  if (!read_depthwise(image, x, kernel, *z, stride)) return refuse(kDepthwiseShapes);
  const bool normalised = input.size() == 4 && are_vectors(input, 0, arithmetic(type), image.channels);
  if (!are_statistics(z, {&mean, &var, &inverse}) || (input.size() && !normalised)) return refuse(kUnitVectors);
  return for_type(type, [&](auto zero) {
    using S = decltype(zero);
    using T = Arithmetic<S>;
    Input<T> how;
    if (normalised) how = normalisation<T>(input, 0, image.channels, relu);
    return depthwise_unit<S>(pool, image, data<S>(x), how, data<S>(kernel), epsilon, measure, data<S>(z),
                             data<T>(mean), data<T>(var), data<T>(inverse));
  });
}

// The gradient of a unit's normalised map, with its sums, and what that map was normalised with.
struct GradientBuffers {
  const ffi::AnyBuffer &values, &map, &mean, &inverse, &scale, &sums, &products;
  bool fit() const {
    if (map.dimensions().size() != 4 || map.element_count() == 0 || values.element_type() != map.element_type() ||
        !same_shape(values.dimensions(), map.dimensions()))
      return false;
    for (const ffi::AnyBuffer* vector : {&mean, &inverse, &scale, &sums, &products})
      if (!is_vector(*vector, arithmetic(map.element_type()), map.dimensions().back())) return false;
    return true;
  }
  template <class S, class T = Arithmetic<S>>
  Gradient<S> of() const {
    const Index channels = map.dimensions().back();
    return {data<S>(values), data<S>(map),  data<T>(mean),     data<T>(inverse),
            data<T>(scale),  data<T>(sums), data<T>(products), static_cast<Index>(map.element_count()) / channels,
            channels};
  }
};

// The sums of the gradient of a normalised input: [c] each; none for an input as it is.
inline bool are_sums(const ffi::RemainingRets& outcomes, bool normalised, ffi::DataType type, Index channels) {
  if (outcomes.size() != (normalised ? 2 : 0)) return false;
  for (size_t i = 0; i < outcomes.size(); i++) {
    auto buffer = outcomes.get<ffi::AnyBuffer>(i);
    if (!buffer.has_value() || !is_vector(**buffer, type, channels)) return false;
  }
  return true;
}

template <class T>
T* outcome(const ffi::RemainingRets& outcomes, size_t index) {
  return outcomes.size() ? reinterpret_cast<T*>((*outcomes.get<ffi::AnyBuffer>(index))->untyped_data()) : nullptr;
}

// `input` is what x is normalised with, or nothing, or a map like x, in whose place the outcome comes: the gradient is
// written to its own channels or, if `add`, added to them.
inline ffi::Error PointwiseUnitGradient(ffi::ThreadPool pool, ffi::AnyBuffer values, ffi::AnyBuffer z,
                                        ffi::AnyBuffer mean, ffi::AnyBuffer inverse, ffi::AnyBuffer scale,
                                        ffi::AnyBuffer sums, ffi::AnyBuffer products, ffi::AnyBuffer x,
                                        ffi::AnyBuffer kernel, ffi::RemainingArgs input, ffi::Result<ffi::AnyBuffer> dx,
                                        ffi::Result<ffi::AnyBuffer> dkernel, ffi::RemainingRets outcomes, bool relu,
                                        int64_t first, bool add) {
  const auto type = x.element_type();
  const GradientBuffers gradient{values, z, mean, inverse, scale, sums, products};
  Pointwise size;
  if (!gradient.fit() || z.element_type() != type || !read_pointwise(size, x, kernel, z.dimensions(), first) ||
      dx->element_type() != type || !same_shape(dx->dimensions(), x.dimensions()) ||
      dkernel->element_type() != type || !same_shape(dkernel->dimensions(), kernel.dimensions()))
    return refuse(kPointwiseShapes);
  const bool normalised = input.size() == 4 && size.depth == size.channels && are_vectors(input, 0, arithmetic(type), size.depth);
  const bool into = input.size() == 1 && input.get<ffi::AnyBuffer>(0)->untyped_data() == dx->untyped_data();
  if (!(normalised || into || (input.size() == 0 && size.depth == size.channels)) || (add && !into) ||
      !are_sums(outcomes, normalised, arithmetic(type), size.depth))
    return refuse(kUnitVectors);
  return for_type(type, [&](auto zero) {
    using S = decltype(zero);
    using T = Arithmetic<S>;
    Input<T> how;
    if (normalised) how = normalisation<T>(input, 0, size.depth, relu);
    return pointwise_unit_gradient<S>(pool, size, gradient.of<S>(), data<S>(x), how, data<S>(kernel), add,
                                      data<S>(dx), data<S>(dkernel), outcome<T>(outcomes, 0), outcome<T>(outcomes, 1));
  });
}

inline ffi::Error DepthwiseUnitGradient(ffi::ThreadPool pool, ffi::AnyBuffer values, ffi::AnyBuffer z,
                                        ffi::AnyBuffer mean, ffi::AnyBuffer inverse, ffi::AnyBuffer scale,
                                        ffi::AnyBuffer sums, ffi::AnyBuffer products, ffi::AnyBuffer x,
                                        ffi::AnyBuffer kernel, ffi::RemainingArgs input, ffi::Result<ffi::AnyBuffer> dx,
                                        ffi::Result<ffi::AnyBuffer> dkernel, ffi::RemainingRets outcomes, bool relu,
                                        int64_t stride) {
  const auto type = x.element_type();
  const GradientBuffers gradient{values, z, mean, inverse, scale, sums, products};
  Image image;
  if (!gradient.fit() || !read_depthwise(image, x, kernel, z, stride) || dx->element_type() != type ||
      !same_shape(dx->dimensions(), x.dimensions()) || dkernel->element_type() != type ||
      !same_shape(dkernel->dimensions(), kernel.dimensions()))
    return refuse(kDepthwiseShapes);
  const bool normalised = input.size() == 4 && are_vectors(input, 0, arithmetic(type), image.channels);
  if ((input.size() && !normalised) || !are_sums(outcomes, normalised, arithmetic(type), image.channels))
    return refuse(kUnitVectors);
  return for_type(type, [&](auto zero) {
    using S = decltype(zero);
    using T = Arithmetic<S>;
    Input<T> how;
    if (normalised) how = normalisation<T>(input, 0, image.channels, relu);
    return depthwise_unit_gradient<S>(pool, image, gradient.of<S>(), data<S>(x), how, data<S>(kernel), data<S>(dx),
                                      data<S>(dkernel), outcome<T>(outcomes, 0), outcome<T>(outcomes, 1));
  });
}

}  // namespace engine
