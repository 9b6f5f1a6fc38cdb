// A convolution of few input channels: every input value times one vector of output channels.
#pragma once
#include "depthwise.h"

namespace engine {

constexpr Index kMostStemChannels = 4;

// Half of the widest vectors waste nothing on 8, 24 or 40 channels, and are no slower: reading limits them.
template <class T>
using StemVector = Vector<T, 32>;

template <class S, class T = Arithmetic<S>>
ffi::Error stem(ffi::ThreadPool& pool, const Image& image, Index outputs, const S* x, const S* kernel, S* y) {
  using V = StemVector<T>;
  constexpr Index together = 4;  // pixels
  const Index inputs = image.channels, taps = image.side * image.side * inputs, width = image.out_width;
  const Index whole = (outputs + V::lanes - 1) / V::lanes * V::lanes;
  std::vector<T> wide(taps * whole);
  for (Index tap = 0; tap < taps; tap++)
    copy(kernel + tap * outputs, &wide[tap * whole], outputs);
  Image rows = image;
  rows.stride = 1;  // the columns stay beside each other
  parallel(pool, image.pieces(), [&](int i) {
    Padded<T> padded(rows, inputs);
    for (Index n = image.begin(i); n < image.begin(i + 1); n++) {
      padded.fill(rows, x + n * image.in_size(), inputs, kPadded);
      for (Index h = 0; h < image.out_height; h++)
        for (Index w = 0; w < width; w += together) {
          const Index pixels = std::min(together, width - w);
          const T* from[together];
          for (Index p = 0; p < together; p++)
            from[p] = padded.values + h * image.stride * padded.row +
                      (w + std::min(p, pixels - 1)) * image.stride * inputs;
          for (Index c = 0; c < outputs; c += V::lanes) {
            typename V::type sum[together] = {};
            const T* k = wide.data() + c;
            for (Index r = 0; r < image.side; r++)
              for (Index q = 0; q < image.side * inputs; q++, k += whole) {
                const typename V::type factor = V::load(k);
#pragma GCC unroll 4
                for (Index p = 0; p < together; p++) sum[p] += from[p][r * padded.row + q] * factor;
              }
            S* to = y + ((n * image.out_height + h) * width + w) * outputs + c;
            for (Index p = 0; p < pixels; p++) V::store(to + p * outputs, sum[p], outputs - c);
          }
        }
    }
  });
  return ffi::Error::Success();
}

// Sums of x * dy for `count` neighbouring taps of one row of the kernel and one vector of output channels.
template <int count, class S, class T = Arithmetic<S>>
void add_stem_taps(const Image& image, const T* x, Index row, const S* dy, Index outputs, Index left, double* sums,
                   Index whole) {
  using V = StemVector<T>;
  constexpr Index block = 4;  // rows that are added up before double takes over
  for (Index start = 0; start < image.out_height; start += block) {
    typename V::type sum[count] = {};
    for (Index h = start; h < std::min(image.out_height, start + block); h++)
      for (Index w = 0; w < image.out_width; w++) {
        const T* p = x + h * image.stride * row + w * image.stride * image.channels;
        const typename V::type d = V::load(dy + (h * image.out_width + w) * outputs, left);
#pragma GCC unroll 9
        for (int t = 0; t < count; t++) sum[t] += p[t] * d;
      }
    for (int t = 0; t < count; t++)
      for (Index lane = 0; lane < V::lanes; lane++) sums[t * whole + lane] += static_cast<double>(sum[t][lane]);
  }
}

template <class S, class T = Arithmetic<S>>
ffi::Error stem_kernel_gradient(ffi::ThreadPool& pool, const Image& image, Index outputs, const S* x, const S* dy,
                                S* dkernel) {
  using V = StemVector<T>;
  const Index inputs = image.channels, taps = image.side * image.side * inputs, in_row = image.side * inputs;
  const Index whole = (outputs + V::lanes - 1) / V::lanes * V::lanes;
  std::vector<double> sums(image.pieces() * taps * whole);
  Image rows = image;
  rows.stride = 1;
  parallel(pool, image.pieces(), [&](int i) {
    Padded<T> padded(rows, inputs);
    double* own = &sums[i * taps * whole];
    for (Index n = image.begin(i); n < image.begin(i + 1); n++) {
      padded.fill(rows, x + n * image.in_size(), inputs, kPadded);
      const S* gradient = dy + n * image.out_height * image.out_width * outputs;
      for (Index c = 0; c < outputs; c += V::lanes)
        for (Index r = 0; r < image.side; r++)
          for (Index q = 0; q < in_row;) {
            const auto add = [&](auto add_taps, Index count) {
              add_taps(image, padded.values + r * padded.row + q, padded.row, gradient + c, outputs, outputs - c,
                       own + (r * in_row + q) * whole + c, whole);
              q += count;
            };
            if (in_row - q >= 9)
              add(add_stem_taps<9, S>, 9);
            else if (in_row - q >= 3)
              add(add_stem_taps<3, S>, 3);
            else
              add(add_stem_taps<1, S>, 1);
          }
    }
  });
  for (Index tap = 0; tap < taps; tap++)
    add_up(&sums[tap * whole], image.pieces(), taps * whole, outputs, dkernel + tap * outputs);
  return ffi::Error::Success();
}

template <class X, class K, class Y>
bool read_stem(Image& image, const X& x, const K& kernel, const Y& y, Index stride) {
  const auto type = x.element_type();
  if (stride < 1 || x.dimensions().size() != 4 || x.element_count() == 0 || kernel.dimensions().size() != 4)
    return false;
  const auto size = x.dimensions(), k = kernel.dimensions();
  image = {size[0], size[1], size[2], size[3], k[0], stride, (size[1] - 1) / stride + 1, (size[2] - 1) / stride + 1};
  return image.side % 2 == 1 && image.channels <= kMostStemChannels && k[3] > 0 &&
         has_shape(kernel, type, {image.side, image.side, image.channels, k[3]}) &&
         has_shape(y, type, {image.count, image.out_height, image.out_width, k[3]});
}

constexpr const char* kStemShapes =
    "stem needs x [n h w c] of at most 4 channels, kernel [k k c o] with an odd k, and y to fit";

inline ffi::Error Stem(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer kernel, ffi::Result<ffi::AnyBuffer> y,
                       int64_t stride) {
  Image image;
  if (!read_stem(image, x, kernel, *y, stride)) return refuse(kStemShapes);
  return for_type(x.element_type(), [&](auto zero) {
    using S = decltype(zero);
    return stem<S>(pool, image, kernel.dimensions()[3], data<S>(x), data<S>(kernel), data<S>(y));
  });
}

inline ffi::Error StemKernelGradient(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer kernel, ffi::AnyBuffer dy,
                                     ffi::Result<ffi::AnyBuffer> dkernel, int64_t stride) {
  Image image;
  if (!read_stem(image, x, kernel, dy, stride) || dkernel->element_type() != x.element_type() ||
      !same_shape(dkernel->dimensions(), kernel.dimensions()))
    return refuse(kStemShapes);
  return for_type(x.element_type(), [&](auto zero) {
    using S = decltype(zero);
    return stem_kernel_gradient<S>(pool, image, kernel.dimensions()[3], data<S>(x), data<S>(dy), data<S>(dkernel));
  });
}

}  // namespace engine
