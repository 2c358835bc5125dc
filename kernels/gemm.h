// Matrix products through cuBLASLt, on raw pointers: no torch. Row-major views of column-major cuBLASLt
// calls. The context keeps a handle, a workspace and one plan (descriptors and an algorithm) per shape,
// layout and dtype, so that a repeated product costs one library call. A plan begins with the algorithm that
// cuBLASLt's heuristic ranks first; a product that comes back is timed once with the best-ranked ones on its
// own operands, large ones for as long as the card takes to settle at its power limit (an algorithm that is
// fastest alone may take more energy, and be slower in training), and goes on with the fastest. The same
// algorithm always gives the same bits; which one wins may differ between machines, so deterministic runs do
// not tune.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "base/dtype.h"
#include "kernels/gemm_plan_file.h"

namespace hearth::kernels {

enum class Transpose { No, Yes };

// d [m, n] = alpha * op(a) [m, k] x op(b) [k, n] + beta * c, all row-major, rows contiguous; op(x) = x, or
// the transpose of the stored matrix. c is d itself, or another matrix of d's type and stride (a residual).
// Operands fp32 or bf16, sums in fp32 with TF32 off, d in d_dtype.
struct GemmArgs {
  DType operand_dtype;  // F32 or BF16, of a and b
  DType d_dtype;        // F32, or the operands' dtype
  Transpose a_transpose, b_transpose;
  int64_t m, n, k;
  const void* a;     // stored [m, k], or [k, m] when transposed
  const void* b;     // stored [k, n], or [n, k] when transposed
  void* d;           // [m, n]
  const void* bias;  // null, or [n] in d_dtype: added to every row
  float beta;        // 0 or 1
  // Elements from one stored row to the next; 0: the rows lie back to back.
  int64_t a_stride = 0, b_stride = 0, d_stride = 0;
  const void* c = nullptr;  // null: d. Read only where beta is not 0
  float alpha = 1.0f;
  bool tune = false;  // may take another algorithm than the heuristic's first
};

// One per device and stream: products on one context share the workspace, so they must be ordered by that
// stream. Not thread-safe.
class GemmContext {
 public:
  // On the current device; allocates the workspace (32 MiB). `file` keeps what was tuned; null: nobody does.
  explicit GemmContext(GemmPlanFile* file = nullptr);
  ~GemmContext();
  GemmContext(const GemmContext&) = delete;
  GemmContext& operator=(const GemmContext&) = delete;

  // Enqueues on `stream`. Synchronizes and allocates only where a shape is tuned: once, at its third product,
  // for up to two seconds, never while the stream is captured into a graph. Throws Error{Cuda} when cuBLASLt
  // refuses, with the shape.
  void run(const GemmArgs& args, cudaStream_t stream);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hearth::kernels
