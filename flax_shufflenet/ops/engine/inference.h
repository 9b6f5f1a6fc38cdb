// A branch of a net for inference: pointwise convolutions, at most one depthwise one, biases and ReLUs, a band of an
// image's rows from its input to its output in the cache.
#pragma once
#include "unit.h"

namespace engine {

// Columns that kernels, and values that taps and biases, are filled up to: whole vectors on every processor.
constexpr Index kFilledUpTo = 16;

template <class T>
struct Layer {
  bool depthwise, relu;
  Index inputs, outputs, row;
  const T *kernel, *bias;
};

// A piece of the input: channels of one of the maps.
template <class S>
struct InputPiece {
  const S* values;
  Index row, channels;
};

template <class S, class T = Arithmetic<S>>
struct BranchOfNet {
  Image image;  // its side and stride are those of the depthwise convolution, or 1
  std::vector<InputPiece<S>> pieces;
  std::vector<Layer<T>> layers;
  S* y;

  // Rows `begin` to `end` of the outcome of image `n`.
  void band(Index n, Index begin, Index end) const {
    const Index first = begin * image.stride - image.pad(), past = (end - 1) * image.stride - image.pad() + image.side;
    const Index low = std::max<Index>(0, first), high = std::min(past, image.height);
    const Index pixels = (high - low) * image.width, at = (n * image.height + low) * image.width;
    Left<T> x = rows_to_multiply(at, pixels);
    S* out = y + (n * image.out_height + begin) * image.out_width * layers.back().outputs;
    const Index out_pixels = (end - begin) * image.out_width;
    bool before = layers.size() > 1 && !(layers.size() == 2 && layers[0].depthwise);
    for (size_t i = 0; i < layers.size(); i++) {
      const Layer<T>& layer = layers[i];
      const bool last = i + 1 == layers.size();
      if (layer.depthwise) before = false;
      const Index count = before ? pixels : out_pixels;
      const auto run = [&](auto* to) {
        if (layer.depthwise)
          convolve_band(layer, x.values, first, low, high, past, end - begin, to);
        else
          product(count, layer.outputs, x, layer.kernel, layer.row, layer.inputs, to, layer.outputs,
                  {false, layer.bias, layer.relu});
      };
      if (last) return run(out);
      T* to = scratch<T>(count * layer.outputs, layer.depthwise ? kGradient : kOther);
      run(to);
      x = {to, layer.outputs, 1};
    }
  }

 private:
  Left<T> rows_to_multiply(Index at, Index pixels) const {
    if constexpr (std::is_same_v<S, T>)
      if (pieces.size() == 1 && !layers[0].depthwise)
        return {pieces[0].values + at * pieces[0].row, pieces[0].row, 1};
    T* to = scratch<T>(pixels * layers[0].inputs, kInput);
    Index channel = 0;
    for (const InputPiece<S>& piece : pieces) {
      for (Index p = 0; p < pixels; p++)
        copy(piece.values + (at + p) * piece.row, to + p * layers[0].inputs + channel, piece.channels);
      channel += piece.channels;
    }
    return {to, layers[0].inputs, 1};
  }

  template <class Y>
  void convolve_band(const Layer<T>& layer, const T* x, Index first, Index low, Index high, Index past, Index rows,
                     Y* to) const {
    Image band = image;
    band.channels = layer.inputs;
    band.out_height = rows;
    Padded<T> padded(band, layer.inputs);
    T* p = scratch<T>((past - first) * padded.row, kPadded);
    padded.values = p;
    for (Index h = first; h < past; h++) {
      T* row = p + (h - first) * padded.row;
      if (h < low || h >= high)
        std::fill(row, row + padded.row, T{0});
      else
        padded.put_row(band, x + (h - low) * image.width * layer.inputs, row, layer.inputs, copy<T, T>);
    }
    const RepeatedTaps<T> taps{layer.row, image.side * image.side, layer.kernel, layer.bias};
    (image.side == 3 ? convolve<3, Y> : convolve<0, Y>)(band, padded, taps, to);
  }
};

// An image with less to do than this many multiplications is not worth waking another thread for.
constexpr Index kWorthAThread = 1 << 19;

template <class S>
ffi::Error run_branch(ffi::ThreadPool& pool, const BranchOfNet<S>& branch) {
  const Image& image = branch.image;
  Index work = 0;
  for (const auto& layer : branch.layers)
    work += (layer.depthwise ? image.side * image.side : layer.inputs) * layer.outputs * image.out_height * image.out_width;
  // No sum goes across bands, so that their number may be any.
  const Index threads = std::max<Index>(1, pool.num_threads());
  Index bands = image.count >= threads ? 1 : std::min(threads, work / kWorthAThread);
  bands = std::clamp<Index>(bands, 1, image.out_height);
  const Index images = image.count * work < kWorthAThread ? image.count : 1;  // of one task
  const int tasks = static_cast<int>((image.count + images - 1) / images * bands);
  parallel(pool, tasks, [&](int task) {
    const Index start = task / bands * images, band = task % bands;
    for (Index n = start; n < std::min(image.count, start + images); n++)
      branch.band(n, image.out_height * band / bands, image.out_height * (band + 1) / bands);
  });
  return ffi::Error::Success();
}

// --- what XLA calls

constexpr const char* kBranchShapes =
    "a branch needs maps of one size, pieces of them that the first layer reads, and for each layer a kernel and a bias, "
    "filled up to 16 values: [d o] if pointwise, [k k c repeated] if depthwise";

// `arrays`: the maps, then for each layer kernel and bias. `pieces`: map, first channel and number of channels of each.
// `layers`: for each whether it is depthwise, its inputs, its outputs, and whether a ReLU follows.
inline ffi::Error InferenceBranch(ffi::ThreadPool pool, ffi::RemainingArgs arrays, ffi::Result<ffi::AnyBuffer> y,
                          ffi::Span<const int64_t> pieces, ffi::Span<const int64_t> layers, int64_t side,
                          int64_t stride) {
  const size_t count = layers.size() / 4, maps = arrays.size() - std::min(arrays.size(), 2 * count);
  const auto type = y->element_type();
  const auto refused = [] { return refuse(kBranchShapes); };
  if (count == 0 || layers.size() % 4 || pieces.size() == 0 || pieces.size() % 3 || maps == 0 || side < 1 || side % 2 == 0 ||
      stride < 1 || y->dimensions().size() != 4)
    return refused();
  const auto size = arrays.get<ffi::AnyBuffer>(0)->dimensions();
  if (size.size() != 4 || arrays.get<ffi::AnyBuffer>(0)->element_count() == 0) return refused();
  for (size_t i = 0; i < arrays.size(); i++)
    if (arrays.get<ffi::AnyBuffer>(i)->element_type() != (i < maps ? type : arithmetic(type))) return refused();
  const Image image{size[0], size[1], size[2], 0, side, stride, (size[1] - 1) / stride + 1, (size[2] - 1) / stride + 1};
  Index inputs = 0;
  for (size_t i = 0; i < pieces.size(); i += 3) {
    if (pieces[i] < 0 || pieces[i] >= static_cast<Index>(maps)) return refused();
    const auto map = arrays.get<ffi::AnyBuffer>(pieces[i])->dimensions();
    if (map.size() != 4 || !std::equal(size.begin(), size.begin() + 3, map.begin()) || pieces[i + 1] < 0 ||
        pieces[i + 2] < 1 || pieces[i + 1] + pieces[i + 2] > map[3])
      return refused();
    inputs += pieces[i + 2];
  }
  int depthwise = 0;
  for (size_t i = 0; i < count; i++) {
    const int64_t* layer = layers.begin() + 4 * i;
    const auto kernel = arrays.get<ffi::AnyBuffer>(maps + 2 * i), bias = arrays.get<ffi::AnyBuffer>(maps + 2 * i + 1);
    const Index filled = layer[0] ? std::lcm(layer[2], kFilledUpTo) : (layer[2] + kFilledUpTo - 1) / kFilledUpTo * kFilledUpTo;
    const Index rows = layer[0] ? side * side : layer[1];
    depthwise += layer[0] != 0;
    if (i > 0 && (layer[0] != 0) == (layer[-4] != 0)) return refused();  // they take turns
    if (layer[1] != inputs || layer[2] < 1 || (layer[0] && (layer[1] != layer[2] || layer[3])) ||
        !has_shape(*kernel, arithmetic(type), {rows, filled}) || !is_vector(*bias, arithmetic(type), filled))
      return refused();
    inputs = layer[2];
  }
  if (depthwise > 1 || (depthwise == 0 && (side != 1 || stride != 1)) ||
      !has_shape(*y, type, {image.count, image.out_height, image.out_width, inputs}))
    return refused();
  return for_type(type, [&](auto zero) {
    using S = decltype(zero);
    using T = Arithmetic<S>;
    BranchOfNet<S> branch{image, {}, {}, data<S>(y)};
    for (size_t i = 0; i < pieces.size(); i += 3) {
      const auto map = arrays.get<ffi::AnyBuffer>(pieces[i]);
      branch.pieces.push_back({data<S>(*map) + pieces[i + 1], map->dimensions()[3], pieces[i + 2]});
    }
    for (size_t i = 0; i < count; i++) {
      const int64_t* layer = layers.begin() + 4 * i;
      const auto kernel = arrays.get<ffi::AnyBuffer>(maps + 2 * i), bias = arrays.get<ffi::AnyBuffer>(maps + 2 * i + 1);
      branch.layers.push_back({layer[0] != 0, layer[3] != 0, layer[1], layer[2], kernel->dimensions()[1],
                               data<T>(*kernel), data<T>(*bias)});
    }
    return run_branch<S>(pool, branch);
  });
}

}  // namespace engine
