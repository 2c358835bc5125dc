// Matrix products through cuBLASLt, on raw pointers: no torch. Row-major views of column-major cuBLASLt
// calls. The context keeps a handle, a workspace and one plan (descriptors and the algorithm that the
// heuristic chose) per shape, layout and dtype, so that a repeated product costs one library call. The same
// plan always gives the same bits.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "base/dtype.h"

namespace hearth::kernels {

enum class Transpose { No, Yes };

// d [m, n] = op(a) [m, k] x op(b) [k, n] + beta * d, all row-major, rows contiguous; op(x) = x, or the
// transpose of the stored matrix. Operands fp32 or bf16, sums in fp32 with TF32 off, d in d_dtype.
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
};

// One per device and stream: products on one context share the workspace, so they must be ordered by that
// stream. Not thread-safe.
class GemmContext {
 public:
  GemmContext();  // on the current device; allocates the workspace (32 MiB)
  ~GemmContext();
  GemmContext(const GemmContext&) = delete;
  GemmContext& operator=(const GemmContext&) = delete;

  // Enqueues on `stream`; never synchronizes. The first product of a shape asks the heuristic. Throws
  // Error{Cuda} when cuBLASLt refuses, with the shape.
  void run(const GemmArgs& args, cudaStream_t stream);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hearth::kernels
