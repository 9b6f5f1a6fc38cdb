// What all operations share: vectors, scratch memory, XLA's threads, and how a call is refused.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <numeric>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace engine {

namespace ffi = xla::ffi;
using Index = int64_t;

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kRegisters = 32;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

// The first half of a float32, which only lies in memory: it is widened where it is read, and rounded where it is
// written, to the nearest, of two to the even one. A NaN stays one.
struct BFloat16 {
  uint16_t bits;
  BFloat16() = default;
  BFloat16(float value) {
    uint32_t wide;
    std::memcpy(&wide, &value, sizeof wide);
    bits = static_cast<uint16_t>((value != value ? wide | 0x400000 : wide + 0x7fff + (wide >> 16 & 1)) >> 16);
  }
  operator float() const {
    const uint32_t wide = uint32_t{bits} << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
};

// What is computed in with values of a map's type S, and what its statistics are of.
template <class S>
using Arithmetic = std::conditional_t<std::is_same_v<S, BFloat16>, float, S>;

inline ffi::DataType arithmetic(ffi::DataType type) {
  return type == ffi::DataType::BF16 ? ffi::DataType::F32 : type;
}

// The compiler's own vectors: it lowers them to whatever the target has.
template <class T, int bytes>
struct CompilersVector {
  typedef T type __attribute__((vector_size(bytes), aligned(alignof(T)), may_alias));
};

template <class T, int bytes = kVectorBytes>
struct Vector {
  using type = typename CompilersVector<T, bytes>::type;
  static constexpr Index lanes = bytes / sizeof(T);
  static type load(const T* p) { return *reinterpret_cast<const type*>(p); }
  static void store(T* p, type v) { *reinterpret_cast<type*>(p) = v; }
  // Of bfloat16, for a T of float: as many values, in half of the bytes.
  using Halves = typename CompilersVector<uint16_t, bytes / 2>::type;
  using Bits = typename CompilersVector<uint32_t, bytes>::type;
  static type load(const BFloat16* p) { return widened(*reinterpret_cast<const Halves*>(p)); }
  static void store(BFloat16* p, type v) { *reinterpret_cast<Halves*>(p) = rounded(v); }
  static type widened(Halves halves) { return (type)(__builtin_convertvector(halves, Bits) << 16); }
  static Halves rounded(type v) {
    const Bits bits = (Bits)v;
    return __builtin_convertvector((v != v ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1)) >> 16, Halves);
  }
  // For `own ? a : b`: true in the first `count` lanes.
  static auto first(Index count) {
    type lane, limit;
    for (Index i = 0; i < lanes; i++) {
      lane[i] = static_cast<T>(i);
      limit[i] = static_cast<T>(count);
    }
    return lane < limit;
  }
  // The first `count` lanes; the others are zero.
  template <class S>
  static type load(const S* p, Index count) {
    if (count >= lanes) return load(p);
#if defined(__AVX512F__)
    const auto mask = (1u << count) - 1;
    if constexpr (bytes == 64 && sizeof(S) == 2) return widened((Halves)_mm256_maskz_loadu_epi16(mask, p));
    if constexpr (bytes == 64 && sizeof(S) == 4) return (type)_mm512_maskz_loadu_ps(mask, p);
    if constexpr (bytes == 64 && sizeof(S) == 8) return (type)_mm512_maskz_loadu_pd(mask, p);
#endif
    S lane[lanes] = {};
    std::memcpy(lane, p, count * sizeof(S));
    return load(lane);
  }
  template <class S>
  static void store(S* p, type v, Index count) {
    if (count >= lanes) return store(p, v);
#if defined(__AVX512F__)
    const auto mask = (1u << count) - 1;
    if constexpr (bytes == 64 && sizeof(S) == 2) return _mm256_mask_storeu_epi16(p, mask, (__m256i)rounded(v));
    if constexpr (bytes == 64 && sizeof(S) == 4) return _mm512_mask_storeu_ps(p, mask, (__m512)v);
    if constexpr (bytes == 64 && sizeof(S) == 8) return _mm512_mask_storeu_pd(p, mask, (__m512d)v);
#endif
    S lane[lanes];
    store(lane, v);
    std::memcpy(p, lane, count * sizeof(S));
  }
};

// Whose scratch memory is whose: what is in use at the same time has slots of its own.
enum Slot { kConstants, kRun, kInput, kGradient, kPadded, kKernel, kOther, kOfAllPieces, kSlots };

// A thread's own memory, kept from call to call: `count` values, and a vector more that may be read but means nothing.
template <class T>
T* scratch(size_t count, Slot slot) {
  static thread_local std::unique_ptr<char[]> memory[kSlots];
  static thread_local size_t size[kSlots];
  const size_t bytes = count * sizeof(T) + 3 * 64;
  if (size[slot] < bytes) {
    memory[slot].reset(new char[bytes]());
    size[slot] = bytes;
  }
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory[slot].get()) + 63) & ~uintptr_t{63});
}

// Calls f(0) ... f(count - 1) on XLA's threads. The caller takes part, and waits only for pieces that another thread
// has begun: two calls that each hold one of two threads would otherwise wait for each other for ever. The first
// exception of any piece is the caller's, when no thread works on any piece any more: it would end the process in
// another thread, and what the pieces work on would be gone.
//
// No template: what each f does would be compiled three times.
inline void parallel(ffi::ThreadPool& pool, int count, const std::function<void(int)>& f) {
  struct Job {
    std::atomic<int> next{0}, done{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error;
    int count;
    const std::function<void(int)>* f;
    void work() {
      for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
        try {
          (*f)(i);
        } catch (...) {
          if (!failed.exchange(true)) error = std::current_exception();
        }
        done.fetch_add(1, std::memory_order_release);
      }
    }
  };
  const int threads = static_cast<int>(std::min<Index>(count, pool.num_threads()));
  if (threads < 2) {
    for (int i = 0; i < count; i++) f(i);
    return;
  }
  auto job = std::make_shared<Job>();  // outlives this call in a thread that comes too late
  job->count = count;
  job->f = &f;
  try {
    for (int thread = 1; thread < threads; thread++) pool.Schedule([job] { job->work(); });
  } catch (const std::bad_alloc&) {  // then there are fewer threads
  }
  job->work();
  // The thread that is waited for may itself wait for this core.
  while (job->done.load(std::memory_order_acquire) < count) std::this_thread::yield();
  if (job->error) std::rethrow_exception(job->error);
}

// Work is cut by its size alone, never by the number of threads: sums are the same on any number.
constexpr Index kMostPieces = 16, kValuesOfAPiece = 4096;

inline int pieces_for(Index values, Index most = kMostPieces) {
  return static_cast<int>(std::clamp<Index>(values / kValuesOfAPiece, 1, std::min(most, kMostPieces)));
}

// The pieces' sums of `length` values each; from one piece's to the next it is `apart`.
template <class T>
void add_up(const double* parts, int count, Index apart, Index length, T* to) {
  for (Index j = 0; j < length; j++) {
    double sum = 0;
    for (int i = 0; i < count; i++) sum += parts[i * apart + j];
    to[j] = static_cast<T>(sum);
  }
}

inline ffi::Error refuse(const std::string& why) {
  return ffi::Error(ffi::ErrorCode::kInvalidArgument, "flax_shufflenet engine: " + why);
}

inline bool same_shape(ffi::Span<const int64_t> a, ffi::Span<const int64_t> b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
}

template <class Buffer>
bool is_vector(const Buffer& buffer, ffi::DataType type, Index length) {
  return buffer.element_type() == type && buffer.dimensions().size() == 1 && buffer.dimensions()[0] == length;
}

template <class Buffer>
bool has_shape(const Buffer& buffer, ffi::DataType type, std::initializer_list<Index> shape) {
  auto dimensions = buffer.dimensions();
  return buffer.element_type() == type && dimensions.size() == shape.size() &&
         std::equal(shape.begin(), shape.end(), dimensions.begin());
}

// One handler for all types of maps: `run` is called with a value of the type.
template <class F>
ffi::Error for_type(ffi::DataType type, F&& run) {
  try {
    if (type == ffi::DataType::F32) return run(float{});
    if (type == ffi::DataType::F64) return run(double{});
    if (type == ffi::DataType::BF16) return run(BFloat16{});
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "flax_shufflenet engine: out of memory");
  }
  return refuse("only float32, float64 and bfloat16");
}

template <class T>
const T* data(const ffi::AnyBuffer& buffer) {
  return reinterpret_cast<const T*>(buffer.untyped_data());
}

template <class T>
T* data(ffi::Result<ffi::AnyBuffer>& buffer) {
  return reinterpret_cast<T*>(buffer->untyped_data());
}

// The same values in T, which may be S.
template <class S, class T>
void copy(const S* from, T* to, Index length) {
  if constexpr (std::is_same_v<S, T>) {
    std::memcpy(to, from, length * sizeof(T));
  } else {
    using V = Vector<T>;
    for (Index j = 0; j < length; j += V::lanes) V::store(to + j, V::load(from + j, length - j), length - j);
  }
}

template <class S, class T>
void repeat(T* to, const S* values, Index length, Index times) {
  for (Index i = 0; i < times; i++) copy(values, to + i * length, length);
}

}  // namespace engine
