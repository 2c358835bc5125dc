// The differentiable pieces of a transformer block, each one autograd::Function over kernels/. They save the
// least they can (inputs and per-row statistics) and rebuild the rest in backward, and they add weight
// gradients straight into the main_grad tensors (fp32 or bf16): no weight is an autograd leaf. Letters: N =
// batch x sequence rows, n = the rows that this rank holds between linears (N, or N / tensor-parallel size
// with sequence parallelism), D hidden, H query heads, K key/value heads of this rank, W head width, F
// intermediate. Weights structs belong to the Transformer and must outlive the graph. Not thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kernels/rope_op.h"
#include "trainer/model/linear_layer.h"
#include "trainer/model/model_context.h"

namespace hearth {

struct NormWeights {
  at::Tensor weight;     // [D] or [W]
  at::Tensor main_grad;  // undefined in inference and where the weight is frozen
  double eps = 1e-5;
  std::vector<int64_t> parameters;
};

// What is kept for backward; what is not kept is rebuilt (recompute.modules in the experiment file).
struct RecomputeChoice {
  bool norm = true;             // normalised activations
  bool swiglu = true;           // silu(gate) x up
  bool core_attention = false;  // softmax(q k) v; of the rest, q, k and v are kept
  int64_t every_layers = 0;  // > 0: only the input of every so many layers is kept, and the rest is rebuilt
};

struct BlockWeights {
  NormWeights input_norm, post_attention_norm;
  NormWeights q_norm, k_norm;  // weight undefined without qk_norm
  LinearWeights qkv, attention_output, gate_up, down;
  int64_t num_heads = 0, num_kv_heads = 0, head_width = 0;
  RecomputeChoice recompute;
  int64_t unit = 0;                       // ParameterShard::unit
  const ModelContext* context = nullptr;  // never null
};

// A vocabulary table, or this tensor-parallel rank's rows of one.
struct VocabWeights {
  LinearWeights linear;  // padded rows included
  int64_t first_id = 0;  // ids [first_id, first_id + count) are here
  int64_t count = 0;
  int64_t vocab_size = 0;  // of the whole table
  int64_t unit = 0;
  const ModelContext* context = nullptr;
};

struct RopeInput {
  kernels::RopeTable table;  // rows for every position used
  at::Tensor positions;      // int64 [N]
};

// x_nD -> norm -> fused q,k,v -> (q/k norm) -> RoPE.
struct AttentionInput {
  at::Tensor qkv_NHW;      // [N, H + 2K, W]
  at::Tensor residual_nD;  // x_nD, for attention_output: this way the gradients of both meet in one kernel
};
AttentionInput attention_input(const at::Tensor& x_nD, const BlockWeights& weights, const RopeInput& rope,
                               const DropoutKeys& keys);
// residual_nD + context_NE W_o^T
at::Tensor attention_output(const at::Tensor& context_NE, const at::Tensor& residual_nD,
                            const BlockWeights& weights, const DropoutKeys& keys);
// x_nD + down(swiglu(gate_up(norm(x_nD))))
at::Tensor mlp(const at::Tensor& x_nD, const BlockWeights& weights, const DropoutKeys& keys);
at::Tensor rms_norm(const at::Tensor& x_nD, const NormWeights& weights, const ModelContext& context);
// Rows [n, D] of the table for ids [N]. `anchor` is any tensor that requires grad: it puts the lookup into
// the graph.
at::Tensor embedding(const at::Tensor& ids_N, const VocabWeights& table, const at::Tensor& anchor);

// Head and loss together in chunks of rows, so that the logits of the whole batch never exist (idea: Liger
// kernels' fused linear cross entropy). For each chunk `loss` gets the logits of this rank's part of the
// vocabulary [rows, padded columns] and the number of the chunk's first row; it turns them into the gradient
// of the chunk's loss in place, and returns fp32 [num_sums], the chunk's addends of what is reported, the
// loss first. All ranks of a tensor-parallel group return the same. Training only: head.main_grad is written,
// where it is defined. Backward expects a gradient of exactly 1 for the returned scalar: gradients are formed
// in forward.
struct LossResult {
  at::Tensor loss;  // fp32 scalar, differentiable
  at::Tensor sums;  // fp32 [num_sums], detached
};
using ChunkLoss = std::function<at::Tensor(at::Tensor& logits_nV, int64_t first_row)>;
LossResult linear_head_loss(const at::Tensor& x_nD, const VocabWeights& head, int64_t num_sums,
                            const ChunkLoss& loss);

// Of a chunk: -log p(target) per row, fp32; the logits become scale x its gradient. Targets of -100 do not
// count. Over a tensor-parallel group only three numbers a row travel (vocabulary-parallel cross entropy:
// Shoeybi et al. 2019).
at::Tensor chunk_cross_entropy(at::Tensor& logits_nV, const at::Tensor& targets_n, const VocabWeights& head,
                               double scale);
// linear_head_loss with the sum over rows of -log p(target) x scale as the loss; sums: {the loss}.
LossResult linear_cross_entropy(const at::Tensor& x_nD, const at::Tensor& targets_N, const VocabWeights& head,
                                double scale);

// Rows whose logits fit in about 1 GiB, a multiple of 128 where that leaves any choice.
int64_t rows_per_logits_chunk(int64_t rows, int64_t vocab, int64_t element_bytes);

}  // namespace hearth
