// Attention of a block of query rows with a block of key rows, and its gradients: the core that every way of
// sharing a sequence calls. Forward returns the log-sum-exp of each query row, so that blocks can be merged;
// backward takes the merged output and log-sum-exp, so that each block gives its exact share of the gradients
// (FlashAttention-2: Dao 2023, which needs nothing else of the other blocks). Kernels of LibTorch: the
// blocked CPU kernel, FlashAttention-2 or cuDNN on CUDA in half precision, matrix products otherwise. No
// communication; thread-safe. Letters: B sequences, L query rows and M key rows of each, N = B x L rows, H
// query heads, K key/value heads (query head h reads key/value head h / (H/K)), W head width. Inputs may be
// views with a contiguous last dim.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace hearth::context {

// Rows [begin, begin + count) of a [N, ...] tensor: one document of one sequence, or the part of it that is
// here.
struct RowRange {
  int64_t begin = 0, count = 0;
};

// N = batch x rows consecutive rows in which attention is causal within each document.
struct PackedDocuments {
  int64_t batch = 0, rows = 0;
  std::vector<RowRange> ranges;  // all documents, ascending; empty: every sequence is one document
  at::Tensor cu_seqlens;         // int32 [documents + 1] on the device; defined for CUDA in half precision
  int64_t longest = 0;           // rows of the longest document
};
// `ranges` cover [0, batch x rows) without gaps; none crosses a sequence.
PackedDocuments make_packed_documents(std::vector<RowRange> ranges, int64_t batch, int64_t rows,
                                      at::Device device, at::ScalarType dtype);

// The log-sum-exp is fp32 (fp64 for fp64), natural logarithm, of the scores scaled by 1/sqrt(W).
struct AttendedRows {
  at::Tensor out_NHW;  // contiguous, dtype of q
  at::Tensor lse_HN;   // contiguous
};
struct AttendedBlock {
  at::Tensor out_BLHW;  // dtype of q
  at::Tensor lse_BHL;
};
struct AttentionGrads {
  at::Tensor dq, dk, dv;  // shapes and dtype of q, k, v
};

// What attends on CUDA in half precision. Cudnn: the faster one on Hopper, for bf16, heads of 64 or 128 and
// more than one row; it makes a plan of every shape that it meets (tens of milliseconds), so it is for blocks
// whose shapes come back, and documents that are divided run Flash; dq is summed with float atomics. Its
// plans are LibTorch's, told apart by q, k and v alone: output and gradient are dense where it runs.
enum class BlockKernels { Flash, Cudnn };

AttendedRows attend_documents(const at::Tensor& q_NHW, const at::Tensor& k_NKW, const at::Tensor& v_NKW,
                              const PackedDocuments& documents, BlockKernels kernels = BlockKernels::Flash);
AttentionGrads attend_documents_backward(const at::Tensor& dout_NHW, const at::Tensor& q_NHW,
                                         const at::Tensor& k_NKW, const at::Tensor& v_NKW,
                                         const AttendedRows& attended, const PackedDocuments& documents,
                                         BlockKernels kernels = BlockKernels::Flash);

// Which keys of its block a query row sees. Causal: rows [0, its own], L = M.
enum class BlockMask { Full, Causal };

AttendedBlock attend(const at::Tensor& q_BLHW, const at::Tensor& k_BMKW, const at::Tensor& v_BMKW,
                     BlockMask mask, BlockKernels kernels = BlockKernels::Flash);
// `attended`: of the whole row, all blocks merged.
AttentionGrads attend_backward(const at::Tensor& dout_BLHW, const at::Tensor& q_BLHW,
                               const at::Tensor& k_BMKW, const at::Tensor& v_BMKW,
                               const AttendedBlock& attended, BlockMask mask,
                               BlockKernels kernels = BlockKernels::Flash);

}  // namespace hearth::context
