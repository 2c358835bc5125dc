#include "trainer/activation_replay.h"

#include "base/dtype.h"
#include "trainer/model/block_functions.h"
#include "trainer/parallel_model.h"

namespace hearth {
namespace {

// The dimensions of one rank's tensors, and their sizes in bytes.
struct Dimensions {
  Dimensions(const ExperimentConfig& config, const Mesh& mesh) {
    const ModelConfig& m = config.model;
    const int64_t tp = mesh.size(MeshAxis::Tp);
    const LocalHeads heads = local_heads(m, tp, 0);
    element = size_bytes(dtype_from_config(config.precision.dtype).value_or(DType::F32));
    rows = config.training.micro_batch_size * config.data.seq_length / mesh.size(MeshAxis::Cp);
    splits_rows = tp > 1 && config.parallel.sequence_parallel;
    const int64_t local_rows = splits_rows ? rows / tp : rows;
    nD = local_rows * m.hidden_size * element;
    summed = tp > 1 ? nD : 0;
    gathered = splits_rows ? rows * m.hidden_size * element : 0;
    q = rows * heads.query * m.head_width() * element;
    kv = rows * heads.kv * m.head_width() * element;
    ffn = rows * m.intermediate_size / tp * element;
    row_norm = 4 * local_rows;
    head_statistics = 4 * rows * heads.query;
    qk_statistics = 4 * rows * (heads.query + heads.kv);
    vocab = vocab_share(m.vocab_size, tp, 0).storage;
    hidden = m.hidden_size;
  }
  int64_t element = 4, rows = 0, vocab = 0, hidden = 0;
  bool splits_rows = false;
  int64_t nD = 0;        // [n, D]
  int64_t gathered = 0;  // [N, D] where it is another tensor than [n, D]
  int64_t summed = 0;    // [n, D], of the ranks' products, where it is another tensor than the output
  int64_t q = 0, kv = 0, ffn = 0;                                // [N, H x W], [N, K x W], [N, F]
  int64_t row_norm = 0, head_statistics = 0, qk_statistics = 0;  // fp32
};

// fp32 attention with document borders keeps an additive mask [B, 1, S, S] a layer (AttentionBackend::Aten).
int64_t mask_bytes(const ExperimentConfig& config, const Mesh& mesh, const Dimensions& d) {
  const bool masked = config.data.reset_attention_mask && mesh.size(MeshAxis::Cp) == 1 && d.element == 4;
  return masked ? d.rows * config.data.seq_length * d.element : 0;
}

int64_t block_bytes(const ExperimentConfig& config, const Mesh& mesh, const Dimensions& d,
                    const RecomputeChoice& choice) {
  int64_t kept = 2 * d.nD + 2 * d.row_norm;          // inputs of both norms
  kept += d.q + 2 * d.kv + d.q + d.head_statistics;  // q, k, v; context; log-sum-exp
  kept += 2 * d.ffn;                                 // gate, up
  const bool exchanges_heads = mesh.size(MeshAxis::Cp) > 1 && config.parallel.cp_comm_type == "a2a";
  if (exchanges_heads) kept += d.q;  // the context before it went back to its rows
  if (choice.core_attention) {
    kept -= d.head_statistics + (exchanges_heads ? d.q : 0);
  } else {
    kept += mask_bytes(config, mesh, d);
  }
  if (!choice.norm) kept += 2 * d.nD;
  if (!choice.swiglu) kept += d.ffn;
  if (config.model.qk_norm) kept += d.q + d.kv + d.qk_statistics;
  return kept;
}

// Operands of the four weight gradients of a layer (MlpFn, AttentionOutputFn, AttentionInputFn); the gradient
// of gate and up lies where they lay.
int64_t deferred_bytes(const Dimensions& d) {
  const int64_t dy_all = d.splits_rows ? d.gathered : d.nD;
  int64_t bytes = dy_all + d.ffn;        // down
  bytes += 2 * d.ffn + d.nD;             // gate, up
  bytes += d.nD + d.gathered + d.q;      // attention output
  return bytes + d.q + 2 * d.kv + d.nD;  // q, k, v
}

}  // namespace

ActivationSizes activation_sizes(const ExperimentConfig& config, const Mesh& mesh) {
  const Dimensions d(config, mesh);
  const RecomputeChoice choice = recompute_choice(config.recompute);
  ActivationSizes sizes;
  sizes.boundary = d.nD;
  sizes.block = block_bytes(config, mesh, d, choice);
  sizes.deferred = deferred_bytes(d);
  sizes.head = d.nD + d.row_norm;  // the gradient that linear_cross_entropy formed
  sizes.micro_batch = 3 * 8 * d.rows;
  sizes.forward_working = (choice.norm ? d.nD : 0) + (choice.swiglu ? d.ffn : 0) + d.gathered + d.summed;
  const int64_t chunk = rows_per_logits_chunk(d.rows, d.vocab, d.element);
  sizes.head_working = d.nD + 2 * d.gathered + chunk * (d.vocab + d.hidden) * d.element;
  // dy; the gradient of silu(gate) x up, whose memory what is rebuilt of that takes over.
  sizes.backward_working = d.nD + d.gathered + d.ffn;
  // The last layer's end: gradients of q, k, v and what attention made them from, of the norm's output and
  // input; its input.
  sizes.deferred_working = d.q + 2 * d.kv + 3 * d.nD + d.gathered;
  sizes.weights_working = d.gathered;
  if (choice.every_layers > 0) {
    sizes.layers_per_group = choice.every_layers;
    sizes.rebuilt_group = d.nD;
    sizes.rebuilt_in_backward = choice.every_layers * sizes.block;
  }
  return sizes;
}

int64_t ActivationReplay::kept_by(Key key) const {
  const ModelChunk& c = chunk(key);
  int64_t bytes =
      sizes_.boundary + sizes_.micro_batch;  // what the chunk passes on, or the final norm's input
  if (c.head) bytes += sizes_.head;
  if (sizes_.rebuilt_group == 0) return bytes + c.num_layers * sizes_.block;
  return bytes +
         (c.num_layers + sizes_.layers_per_group - 1) / sizes_.layers_per_group * sizes_.rebuilt_group;
}

void ActivationReplay::see(int64_t working) {
  if (now_ + working <= peak_kept_ + peak_working_) return;
  peak_kept_ = now_;
  peak_working_ = working;
}

void ActivationReplay::forward(Key key) {
  now_ -= std::exchange(arrived_[key], 0);  // the first block's input from here on
  now_ += kept_by(key);
  see(std::max(sizes_.forward_working, chunk(key).head ? sizes_.head_working : 0));
}

void ActivationReplay::backward(Key key, bool defer) {
  now_ += sizes_.rebuilt_in_backward;
  see(sizes_.backward_working);
  now_ -= sizes_.rebuilt_in_backward + kept_by(key);
  if (defer) {
    now_ += deferred_[key] = chunk(key).num_layers * sizes_.deferred;
    see(sizes_.deferred_working);
  }
  now_ -= std::exchange(arrived_gradients_[key], 0);
}

void ActivationReplay::perform(const Action& action) {
  if (is_transfer(action)) return transfer(action);
  compute(action);
  now_ -= std::exchange(sending_, 0);  // gone by now
}

// Received ahead: one [n, D] until the action that takes it. Activations that are sent are kept anyway.
void ActivationReplay::transfer(const Action& action) {
  const Key key{action.chunk, action.micro};
  if (action.kind == ActionKind::SendForward) return;
  now_ += sizes_.boundary;
  if (action.kind == ActionKind::RecvForward) arrived_[key] = sizes_.boundary;
  if (action.kind == ActionKind::RecvBackward) arrived_gradients_[key] = sizes_.boundary;
  if (action.kind == ActionKind::SendBackward) sending_ += sizes_.boundary;
}

void ActivationReplay::compute(const Action& action) {
  const Key key{action.chunk, action.micro};
  switch (action.kind) {
    case ActionKind::Forward:
      return forward(key);
    case ActionKind::Backward:
      return backward(key, /*defer=*/false);
    case ActionKind::BackwardInput:
      return backward(key, /*defer=*/true);
    case ActionKind::BackwardWeight:
      see(sizes_.weights_working);
      now_ -= std::exchange(deferred_[key], 0);
      return;
    case ActionKind::ForwardBackward:
      forward(key);
      return backward({action.backward_chunk, action.backward_micro}, /*defer=*/false);
    default:
      return;
  }
}

}  // namespace hearth
