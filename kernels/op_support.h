// What every tensor entry (<op>_op.cpp) shares: which path to run, and checks whose messages show what was
// passed. Not for model code, except KernelPath. Thread-safe: pure functions.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "base/dtype.h"
#include "base/error.h"

namespace hearth::kernels {

// Fused: our kernels (CUDA) or our vectorised loops (CPU). Plain: the same maths composed of ATen operations,
// on any device; kept selectable so that a fused result can always be compared with one that is not ours.
enum class KernelPath { Fused, Plain };

// "bf16[8, 4096] cuda:0", or "undefined".
std::string describe(const at::Tensor& tensor);

// Throws Error{Usage} unless `tensor` is defined, fp32 or bf16, of `dim` dimensions, with a contiguous last
// one.
void check_activation(const char* op, const char* what, const at::Tensor& tensor, int64_t dim);
// Throws Error{Usage} unless `tensor` is a contiguous fp32 tensor of `count` elements on the device of
// `like`.
void check_fp32_flat(const char* op, const char* what, const at::Tensor& tensor, int64_t count,
                     const at::Tensor& like);
// Throws Error{Usage} unless `tensor` is a contiguous fp32 or bf16 tensor of `count` elements on the device
// of `like`: what gradients and the states of an optimizer are kept in.
void check_state(const char* op, const char* what, const at::Tensor& tensor, int64_t count,
                 const at::Tensor& like);
// Throws Error{Usage} unless `ids` is a contiguous int32 or int64 vector of `count` elements on the device of
// `like`.
void check_ids(const char* op, const char* what, const at::Tensor& ids, int64_t count,
               const at::Tensor& like);
// Throws Error{Usage} unless both have one shape, dtype and device.
void check_same(const char* op, const char* what, const at::Tensor& a, const at::Tensor& b);

// The dtype in the form that raw-pointer launchers take. Throws Error{Usage} for one that no kernel takes.
DType kernel_dtype(const at::Tensor& tensor);

// fp32 view of a CPU tensor: itself, or a widened contiguous copy of a bf16 one.
at::Tensor widen(const at::Tensor& tensor);

// Calls `add` with a sum in fp32: `sum` itself, or a wide copy, which is then rounded back once.
template <class Add>
void on_wide_sum(at::Tensor& sum, Add&& add) {
  if (sum.scalar_type() == at::kFloat) return add(sum);
  at::Tensor wide = sum.to(at::kFloat);
  add(wide);
  sum.copy_(wide);
}

}  // namespace hearth::kernels
