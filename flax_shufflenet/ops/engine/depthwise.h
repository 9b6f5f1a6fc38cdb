// Depthwise convolution of any odd side and any stride, and its two gradients, an image at a time.
#pragma once
#include "engine.h"

namespace engine {

struct Image {
  Index count, height, width, channels, side, stride, out_height, out_width;
  Index pad() const { return (side - 1) / 2; }
  Index in_size() const { return height * width * channels; }
  Index out_size() const { return out_height * out_width * channels; }
  int pieces() const { return pieces_for(count * std::max(in_size(), out_size()), count); }
  Index begin(int piece) const { return count * piece / pieces(); }
};

// A zero-padded image whose columns lie by their residue modulo the stride: what one tap reads for a row of outputs
// is then one run of values.
template <class T>
struct Padded {
  const T* values;
  Index row;                   // values from one row to the next
  std::vector<Index> offsets;  // for each column of the kernel, where its run begins
  Padded(const Image& image, Index channels) {
    std::vector<Index> runs{0};
    for (Index r = 0; r < image.stride; r++) {
      const Index columns = image.width + 2 * image.pad() - r;
      runs.push_back(runs.back() + std::max<Index>(0, (columns + image.stride - 1) / image.stride));
    }
    for (Index j = 0; j < image.side; j++) offsets.push_back((runs[j % image.stride] + j / image.stride) * channels);
    row = runs.back() * channels;
    starts = std::move(runs);
  }
  template <class S>
  void fill(const Image& image, const S* x, Index channels, Slot slot) {
    fill(image, x, channels, slot, copy<S, T>);
  }
  // `row_of(from, to, length)` makes each row of the image.
  template <class S, class F>
  void fill(const Image& image, const S* x, Index channels, Slot slot, F&& row_of) {
    const Index pad = image.pad(), rows = image.height + 2 * pad;
    T* p = scratch<T>(rows * row, slot);
    values = p;
    std::fill(p, p + pad * row, T{0});
    std::fill(p + (pad + image.height) * row, p + rows * row, T{0});
    for (Index h = 0; h < image.height; h++)
      put_row(image, x + h * image.width * channels, p + (h + pad) * row, channels, row_of);
  }
  template <class S, class F>
  void put_row(const Image& image, const S* from, T* to, Index channels, F&& row_of) const {
    const Index pad = image.pad(), stride = image.stride;
    if (stride == 1) {
      std::fill(to, to + pad * channels, T{0});
      row_of(from, to + pad * channels, image.width * channels);
      std::fill(to + (pad + image.width) * channels, to + row, T{0});
      return;
    }
    std::fill(to, to + row, T{0});
    T* made = scratch<T>(image.width * channels, kRun);
    row_of(from, made, image.width * channels);
    for (Index w = 0; w < image.width; w++) {
      const Index q = w + pad;
      std::memcpy(to + (starts[q % stride] + q / stride) * channels, made + w * channels, channels * sizeof(T));
    }
  }

 private:
  std::vector<Index> starts;
};

// A kernel's taps, each repeated over as many pixels as fill whole vectors, and what sums begin with, or nothing.
template <class T>
struct RepeatedTaps {
  Index length, count;
  const T *values, *bias;
  const T* at(Index tap) const { return values + tap * length; }
};

template <class T>
struct Taps : RepeatedTaps<T> {
  std::vector<T> memory;
  template <class S>
  Taps(const S* kernel, const Image& image, bool flipped) {
    const Index length = std::lcm(image.channels, Vector<T>::lanes), count = image.side * image.side;
    memory.resize(count * length);
    for (Index tap = 0; tap < count; tap++)
      repeat(&memory[tap * length], kernel + (flipped ? count - 1 - tap : tap) * image.channels, image.channels,
             length / image.channels);
    static_cast<RepeatedTaps<T>&>(*this) = {length, count, memory.data(), nullptr};
  }
  Taps(const Taps&) = delete;
};

// One image. A side of 0 is any side; that of 3 keeps its taps in registers, and two rows share what they read.
template <int side_or_0, class S, class T = Arithmetic<S>>
void convolve(const Image& image, const Padded<T>& x, const RepeatedTaps<T>& taps, S* y) {
  using V = Vector<T>;
  const Index flat = image.out_width * image.channels, side = side_or_0 ? side_or_0 : image.side;
  if constexpr (side_or_0 == 3) {
    const Index step = image.stride == 1 ? 2 : 1;
    for (Index h = 0; h < image.out_height; h += step) {
      const T* row = x.values + h * image.stride * x.row;
      const bool two = step == 2 && h + 1 < image.out_height;
      for (Index j = 0; j < std::min(taps.length, flat); j += V::lanes) {
        typename V::type k[9];
        for (int tap = 0; tap < 9; tap++) k[tap] = V::load(taps.at(tap) + j);
        const typename V::type bias = taps.bias ? V::load(taps.bias + j) : typename V::type{};
        for (Index f = j; f < flat; f += taps.length) {
          typename V::type a = bias, b = bias;
          if (two) {
#pragma GCC unroll 3
            for (int c = 0; c < 3; c++) {
              const T* p = row + x.offsets[c] + f;
              const typename V::type x1 = V::load(p + x.row), x2 = V::load(p + 2 * x.row);
              a += V::load(p) * k[c] + x1 * k[3 + c] + x2 * k[6 + c];
              b += x1 * k[c] + x2 * k[3 + c] + V::load(p + 3 * x.row) * k[6 + c];
            }
            V::store(y + (h + 1) * flat + f, b, flat - f);
          } else {
#pragma GCC unroll 3
            for (int c = 0; c < 3; c++) {
              const T* p = row + x.offsets[c] + f;
              a += V::load(p) * k[c] + V::load(p + x.row) * k[3 + c] + V::load(p + 2 * x.row) * k[6 + c];
            }
          }
          V::store(y + h * flat + f, a, flat - f);
        }
      }
    }
  } else {
    for (Index h = 0; h < image.out_height; h++)
      for (Index j = 0; j < std::min(taps.length, flat); j += V::lanes)
        for (Index f = j; f < flat; f += taps.length) {
          typename V::type a = taps.bias ? V::load(taps.bias + j) : typename V::type{};
          for (Index r = 0; r < side; r++)
            for (Index c = 0; c < side; c++)
              a += V::load(x.values + (h * image.stride + r) * x.row + x.offsets[c] + f) *
                   V::load(taps.at(r * side + c) + j);
          V::store(y + h * flat + f, a, flat - f);
        }
  }
}

template <class S, class T = Arithmetic<S>>
ffi::Error depthwise(ffi::ThreadPool& pool, const Image& image, const S* x, const S* kernel, S* y, bool flipped) {
  const Taps<T> taps(kernel, image, flipped);
  parallel(pool, image.pieces(), [&](int i) {
    Padded<T> padded(image, image.channels);
    for (Index n = image.begin(i); n < image.begin(i + 1); n++) {
      padded.fill(image, x + n * image.in_size(), image.channels, kPadded);
      (image.side == 3 ? convolve<3, S> : convolve<0, S>)(image, padded, taps, y + n * image.out_size());
    }
  });
  return ffi::Error::Success();
}

// One image's. With a stride, input rows and columns of one residue always meet the same taps: each residue is a small
// convolution of dy, whose columns are then put between the others'.
template <class S, class D, class T>
void strided_input_gradient(const Image& image, const Taps<T>& taps, const D* dy, S* dx) {
  using V = Vector<T>;
  const Index channels = image.channels, stride = image.stride, pad = image.pad(), margin = pad / stride + 1;
  const Index row = (image.out_width + 2 * margin) * channels, rows = image.out_height + 2 * margin;
  std::vector<const T*> sources(taps.count), factors(taps.count);
  T* padded = scratch<T>(rows * row, kPadded);
  std::fill(padded, padded + rows * row, T{0});
  for (Index h = 0; h < image.out_height; h++)
    copy(dy + h * image.out_width * channels, padded + (h + margin) * row + margin * channels,
         image.out_width * channels);
  for (Index h = 0; h < image.height; h++)
    for (Index residue = 0; residue < std::min(stride, image.width); residue++) {
      const Index columns = (image.width - residue + stride - 1) / stride, flat = columns * channels;
      size_t terms = 0;
      for (Index r = (h + pad) % stride; r < image.side; r += stride)
        for (Index c = (residue + pad) % stride; c < image.side; c += stride) {
          const Index from_row = margin + (h + pad - r) / stride, from = margin + (residue + pad - c) / stride;
          sources[terms] = padded + from_row * row + from * channels;
          factors[terms++] = taps.at(r * image.side + c);
        }
      S* run = scratch<S>(flat + V::lanes, kRun);
      for (Index j = 0; j < std::min(taps.length, flat); j += V::lanes)
        for (Index f = j; f < flat; f += taps.length) {
          typename V::type a = {};
          for (size_t t = 0; t < terms; t++) a += V::load(sources[t] + f) * V::load(factors[t] + j);
          V::store(run + f, a);
        }
      S* to = dx + (h * image.width + residue) * channels;
      for (Index w = 0; w < columns; w++)
        std::memcpy(to + w * stride * channels, run + w * channels, channels * sizeof(S));
    }
}

template <class S>
ffi::Error strided_input_gradient(ffi::ThreadPool& pool, const Image& image, const S* kernel, const S* dy, S* dx) {
  const Taps<Arithmetic<S>> taps(kernel, image, false);
  parallel(pool, image.pieces(), [&](int i) {
    for (Index n = image.begin(i); n < image.begin(i + 1); n++)
      strided_input_gradient(image, taps, dy + n * image.out_size(), dx + n * image.in_size());
  });
  return ffi::Error::Success();
}

// Adds one image's sums of x * dy for the taps from `first` on, `count` of them, in one row of the kernel or in all.
template <int count, class T, class D>
void add_taps(const Image& image, const Padded<T>& x, const D* dy, Index first, Index length, double* sums) {
  using V = Vector<T>;
  const Index flat = image.out_width * image.channels, block = std::max<Index>(2, 4096 / x.row);
  Index offset[count];
  for (int t = 0; t < count; t++)
    offset[t] = (first + t) / image.side * x.row + x.offsets[(first + t) % image.side];
  for (Index start = 0; start < image.out_height; start += block)
    for (Index j = 0; j < std::min(length, flat); j += V::lanes) {
      typename V::type sum[count] = {};
      for (Index h = start; h < std::min(image.out_height, start + block); h++) {
        const T* row = x.values + h * image.stride * x.row;
        for (Index f = j; f < flat; f += length) {
          if (flat - f < V::lanes) {  // what lies past the row's end need not even be a number
            const typename V::type d = V::load(dy + h * flat + f, flat - f);
            const auto own = V::first(flat - f);
            for (int t = 0; t < count; t++) sum[t] += own ? V::load(row + offset[t] + f) * d : typename V::type{};
            break;
          }
          const typename V::type d = V::load(dy + h * flat + f);
#pragma GCC unroll 9
          for (int t = 0; t < count; t++) sum[t] += V::load(row + offset[t] + f) * d;
        }
      }
      for (int t = 0; t < count; t++)
        for (Index lane = 0; lane < V::lanes; lane++)
          sums[(first + t) * length + j + lane] += static_cast<double>(sum[t][lane]);
    }
}

template <class T, class D>
void add_all_taps(const Image& image, const Padded<T>& x, const D* dy, Index length, double* sums) {
  const Index taps = image.side * image.side;
  if (taps == 9) return add_taps<9>(image, x, dy, 0, length, sums);
  for (Index tap = 0; tap < taps; tap++) add_taps<1>(image, x, dy, tap, length, sums);
}

template <class S, class T = Arithmetic<S>>
ffi::Error depthwise_kernel_gradient(ffi::ThreadPool& pool, const Image& image, const S* x, const S* dy, S* dkernel) {
  const Index taps = image.side * image.side, channels = image.channels;
  const Index length = std::lcm(channels, Vector<T>::lanes);
  std::vector<double> sums(image.pieces() * taps * channels);
  parallel(pool, image.pieces(), [&](int i) {
    Padded<T> padded(image, channels);
    std::vector<double> own(taps * length);
    for (Index n = image.begin(i); n < image.begin(i + 1); n++) {
      padded.fill(image, x + n * image.in_size(), channels, kPadded);
      const S* gradient = dy + n * image.out_size();
      add_all_taps(image, padded, gradient, length, own.data());
    }
    for (Index tap = 0; tap < taps; tap++)
      add_folded(&sums[(i * taps + tap) * channels], &own[tap * length], channels, length / channels);
  });
  add_up(sums.data(), image.pieces(), taps * channels, taps * channels, dkernel);
  return ffi::Error::Success();
}

// Reads the sizes; false if they do not fit together.
template <class X, class K, class Y>
bool read_depthwise(Image& image, const X& x, const K& kernel, const Y& y, Index stride) {
  const auto type = x.element_type();
  if (stride < 1 || x.dimensions().size() != 4 || x.element_count() == 0 || kernel.dimensions().size() != 4)
    return false;
  const auto size = x.dimensions();
  image = {size[0], size[1], size[2], size[3], kernel.dimensions()[0], stride, (size[1] - 1) / stride + 1,
           (size[2] - 1) / stride + 1};
  return image.side % 2 == 1 && has_shape(kernel, type, {image.side, image.side, 1, image.channels}) &&
         has_shape(y, type, {image.count, image.out_height, image.out_width, image.channels});
}

constexpr const char* kDepthwiseShapes = "depthwise needs x [n h w c], kernel [k k 1 c] with an odd k, and y to fit";

inline ffi::Error Depthwise(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer kernel,
                            ffi::Result<ffi::AnyBuffer> y, int64_t stride) {
  Image image;
  if (!read_depthwise(image, x, kernel, *y, stride)) return refuse(kDepthwiseShapes);
  return for_type(x.element_type(), [&](auto zero) {
    using S = decltype(zero);
    return depthwise<S>(pool, image, data<S>(x), data<S>(kernel), data<S>(y), false);
  });
}

inline ffi::Error DepthwiseInputGradient(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer kernel, ffi::AnyBuffer dy,
                                         ffi::Result<ffi::AnyBuffer> dx, int64_t stride) {
  Image image;
  if (!read_depthwise(image, x, kernel, dy, stride) || dx->element_type() != x.element_type() ||
      !same_shape(dx->dimensions(), x.dimensions()))
    return refuse(kDepthwiseShapes);
  return for_type(dy.element_type(), [&](auto zero) {
    using S = decltype(zero);
    if (stride == 1) return depthwise<S>(pool, image, data<S>(dy), data<S>(kernel), data<S>(dx), true);
    return strided_input_gradient<S>(pool, image, data<S>(kernel), data<S>(dy), data<S>(dx));
  });
}

inline ffi::Error DepthwiseKernelGradient(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer kernel, ffi::AnyBuffer dy,
                                          ffi::Result<ffi::AnyBuffer> dkernel, int64_t stride) {
  Image image;
  if (!read_depthwise(image, x, kernel, dy, stride) || dkernel->element_type() != x.element_type() ||
      !same_shape(dkernel->dimensions(), kernel.dimensions()))
    return refuse(kDepthwiseShapes);
  return for_type(x.element_type(), [&](auto zero) {
    using S = decltype(zero);
    return depthwise_kernel_gradient<S>(pool, image, data<S>(x), data<S>(dy), data<S>(dkernel));
  });
}

}  // namespace engine
