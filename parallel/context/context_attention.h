// Causal grouped-query attention over one sequence that the ranks of a context-parallel group share: each
// holds S/size of its positions. Exact: equal to attention over the whole sequence with causal and document
// masks, up to the order of fp32 sums. Zigzag split: the sequence is cut in 2 x size chunks of c rows and
// rank r holds chunks r and 2 x size - 1 - r, so every rank has the same share of the causal triangle (ring
// attention: Liu, Zaharia, Abbeel 2023; the zigzag split is that of Llama 3 training, 2024). Letters: B
// batch, S whole sequence, L = S/size local rows of a sequence, N = B x L, H query heads, K key/value heads,
// W head width. Not thread-safe: one thread per Comm; all ranks of the group make the same calls.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "parallel/comm.h"
#include "parallel/context/block_attention.h"
#include "parallel/context/context_split.h"

namespace hearth {

// How the ranks share the work. Ring: keys and values travel from rank to rank while each attends with its
// own rows. AllToAll (DeepSpeed Ulysses: Jacobs et al. 2023): rows are exchanged for heads, each rank attends
// over the whole sequence with its share of the heads.
enum class ContextMethod { Ring, AllToAll };

// Positions of the whole sequence [0, S) that rank `rank` of `size` holds: chunk `rank`, then its mirror
// chunk, each ascending. One rank holds 0..S-1. Throws Error{Config} unless S is a positive multiple of 2 x
// size (size 1: any S).
std::vector<int64_t> context_positions(int64_t sequence, int64_t size, int64_t rank);

// Rows of this rank that attend, without any mask, to rows that another rank holds: in each of the sequences
// [batch_begin, batch_begin + batch_count), its local rows [query_begin, + query_count) see the other rank's
// local rows [key_begin, + key_count). One rectangle a sequence is all there is between two ranks: see
// context_layout.cpp.
struct ContextRectangle {
  int64_t batch_begin = 0, batch_count = 0;
  int64_t query_begin = 0, query_count = 0;
  int64_t key_begin = 0, key_count = 0;
};

// What attention needs to know about one micro-batch; a value, made once per micro-batch on every rank from
// the same whole sequences.
struct ContextLayout {
  int64_t batch = 0, sequence = 0, local = 0;
  int64_t size = 1, rank = 0;
  context::PackedDocuments local_documents;  // Ring: this rank's own rows against each other
  std::vector<std::vector<ContextRectangle>>
      rectangles;                            // Ring: [size], by the rank that holds the keys; own: empty
  context::PackedDocuments whole_documents;  // AllToAll: all rows of the B sequences
  at::Tensor
      rows_by_rank;  // AllToAll: int64 [B x S], row of the B whole sequences at place (rank, b, local row)
  at::Tensor rows_by_position;  // its inverse
};

// `document_starts[b]` lists, ascending, the positions in [0, S) of sequence b at which a document begins (0
// included or not). For activations of `dtype` on `device`. Throws Error{Config} where `sequence` cannot be
// split.
ContextLayout make_context_layout(const std::vector<std::vector<int32_t>>& document_starts, int64_t sequence,
                                  int64_t size, int64_t rank, at::Device device, at::ScalarType dtype);

// qkv_NHW: [N, H + 2K, W] after RoPE, rows batch-major and in the order of context_positions. Returns the
// context [N, H x W]. Differentiable; the backward communicates too. fp32, fp64 and half precision; sums in
// fp32 or better. `cp` must outlive the backward, `layout` need not. Throws Error{Config} for AllToAll with
// heads that do not fit. `kernels`: of sequences that are one document each; what has documents runs Flash.
at::Tensor context_attention(const at::Tensor& qkv_NHW, int64_t num_heads, int64_t num_kv_heads,
                             const ContextLayout& layout, ContextMethod method, Comm& cp,
                             context::BlockKernels kernels = context::BlockKernels::Flash);

}  // namespace hearth
