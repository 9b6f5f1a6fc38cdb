// The handlers that XLA calls, and what the library says about itself.
#pragma once
#include "inference.h"
#include "shuffle.h"
#include "stem.h"

using xla::ffi::AnyBuffer;
using xla::ffi::Ffi;
using xla::ffi::ThreadPool;

// All else is hidden: static variables of templates would be one and the same in all builds that are loaded.
#pragma GCC visibility push(default)

#define BIND() Ffi::Bind().Ctx<ThreadPool>()

XLA_FFI_DEFINE_HANDLER_SYMBOL(batch_norm_statistics, engine::BatchNormStatistics,
                              BIND().Arg<AnyBuffer>().Ret<AnyBuffer>().Ret<AnyBuffer>().Ret<AnyBuffer>()
                                  .Attr<double>("epsilon"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(batch_norm, engine::BatchNorm,
                              BIND().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>().Ret<AnyBuffer>().Attr<bool>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(batch_norm_gradient_sums, engine::BatchNormGradientSums,
                              BIND().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>().Arg<AnyBuffer>().Ret<AnyBuffer>().Ret<AnyBuffer>()
                                  .Attr<bool>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(batch_norm_input_gradient, engine::BatchNormInputGradient,
                              BIND().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>()
                                  .Ret<AnyBuffer>().Attr<bool>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(depthwise, engine::Depthwise,
                              BIND().Arg<AnyBuffer>().Arg<AnyBuffer>().Ret<AnyBuffer>().Attr<int64_t>("stride"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(depthwise_input_gradient, engine::DepthwiseInputGradient,
                              BIND().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>().Ret<AnyBuffer>().Attr<int64_t>("stride"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(depthwise_kernel_gradient, engine::DepthwiseKernelGradient,
                              BIND().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>().Ret<AnyBuffer>().Attr<int64_t>("stride"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(stem, engine::Stem,
                              BIND().Arg<AnyBuffer>().Arg<AnyBuffer>().Ret<AnyBuffer>().Attr<int64_t>("stride"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(stem_kernel_gradient, engine::StemKernelGradient,
                              BIND().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>().Ret<AnyBuffer>().Attr<int64_t>("stride"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(pointwise_unit, engine::PointwiseUnit,
                              BIND().Arg<AnyBuffer>().Arg<AnyBuffer>().RemainingArgs()
                                  .Ret<AnyBuffer>().Ret<AnyBuffer>().Ret<AnyBuffer>().Ret<AnyBuffer>()
                                  .Attr<double>("epsilon").Attr<bool>("measure").Attr<bool>("relu")
                                  .Attr<int64_t>("first"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(pointwise_unit_gradient, engine::PointwiseUnitGradient,
                              BIND().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>().RemainingArgs().Ret<AnyBuffer>().Ret<AnyBuffer>().RemainingRets()
                                  .Attr<bool>("relu").Attr<int64_t>("first").Attr<bool>("add"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(depthwise_unit, engine::DepthwiseUnit,
                              BIND().Arg<AnyBuffer>().Arg<AnyBuffer>().RemainingArgs()
                                  .Ret<AnyBuffer>().Ret<AnyBuffer>().Ret<AnyBuffer>().Ret<AnyBuffer>()
                                  .Attr<double>("epsilon").Attr<bool>("measure").Attr<bool>("relu")
                                  .Attr<int64_t>("stride"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(depthwise_unit_gradient, engine::DepthwiseUnitGradient,
                              BIND().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>().RemainingArgs().Ret<AnyBuffer>().Ret<AnyBuffer>().RemainingRets()
                                  .Attr<bool>("relu").Attr<int64_t>("stride"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(join, engine::Join,
                              BIND().Arg<AnyBuffer>().Arg<AnyBuffer>().RemainingArgs().Ret<AnyBuffer>()
                                  .Attr<bool>("left_relu").Attr<bool>("right_relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(join_gradient, engine::JoinGradient,
                              BIND().Arg<AnyBuffer>().Arg<AnyBuffer>().RemainingArgs().Ret<AnyBuffer>().RemainingRets()
                                  .Attr<bool>("left_relu").Attr<bool>("right_relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(inference_branch, engine::InferenceBranch,
                              BIND().RemainingArgs().Ret<AnyBuffer>()
                                  .Attr<xla::ffi::Span<const int64_t>>("pieces").Attr<xla::ffi::Span<const int64_t>>("layers")
                                  .Attr<int64_t>("side").Attr<int64_t>("stride"));

extern "C" const char* engine_sources() { return ENGINE_SOURCES; }

// The best of the instruction sets that there are builds for.
extern "C" const char* engine_instructions() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    return "avx512";
  if (avx2) return "avx2";
#endif
  return "baseline";
}

#pragma GCC visibility pop
