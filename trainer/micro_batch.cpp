#include "trainer/micro_batch.h"

#include <ATen/ops/empty.h>

#include "base/error.h"
#include "kernels/cross_entropy_op.h"
#include "parallel/tensor/upload.h"

namespace hearth {

void require_known_ids(const Sample& sample, int64_t vocab_size) {
  for (const int32_t token : sample.tokens)
    HEARTH_CHECK(token >= 0 && token < vocab_size, BadInput,
                 "dataset {}, shard {}, window {}: token id {} is not below the model's vocabulary of {}",
                 sample.provenance.dataset, sample.provenance.shard, sample.provenance.window, token,
                 vocab_size);
}

namespace {

// A row's place in the whole stream of tokens.
DropoutKeys dropout_keys(const std::vector<Sample>& samples, const std::vector<int64_t>& positions,
                         at::Device device) {
  std::vector<int64_t> keys;
  for (const Sample& sample : samples)
    for (const int64_t position : positions)
      keys.push_back(sample.number * static_cast<int64_t>(sample.loss_mask.size()) + position);
  return {upload(keys, device)};
}

}  // namespace

MicroBatch make_micro_batch(const std::vector<Sample>& samples, DocumentMask mask, const Transformer& model) {
  HEARTH_REQUIRE(!samples.empty(), "a micro-batch without samples");
  const auto sequence = static_cast<int64_t>(samples[0].loss_mask.size());
  const ContextParallel& share = model.context().sequence;
  const std::vector<int64_t> positions = context_positions(sequence, share.size(), share.rank());
  const auto local = static_cast<int64_t>(positions.size()),
             batch_size = static_cast<int64_t>(samples.size());
  const auto options = at::TensorOptions(at::kLong).pinned_memory(model.device().is_cuda());
  at::Tensor ids = at::empty({batch_size * local}, options),
             targets = at::empty({batch_size * local}, options);
  auto* id = ids.data_ptr<int64_t>();
  auto* target = targets.data_ptr<int64_t>();
  MicroBatch batch;
  std::vector<std::vector<int32_t>> document_starts;
  for (const Sample& sample : samples) {
    HEARTH_REQUIRE(static_cast<int64_t>(sample.tokens.size()) == sequence + 1,
                   "sample of {} tokens, expected {}", sample.tokens.size(), sequence + 1);
    require_known_ids(sample, model.config().vocab_size);
    for (const int64_t position : positions) {
      const auto at = static_cast<size_t>(position);
      *id++ = sample.tokens[at];
      *target++ = sample.loss_mask[at] ? sample.tokens[at + 1] : kernels::kIgnoreIndex;
      batch.valid_targets += sample.loss_mask[at] ? 1 : 0;
    }
    document_starts.push_back(mask == DocumentMask::Yes ? sample.document_starts : std::vector<int32_t>{0});
  }
  if (model.drops()) batch.input.dropout_keys = dropout_keys(samples, positions, model.device());
  batch.input.ids_N = ids.to(model.device(), /*non_blocking=*/true);
  batch.targets_N = targets.to(model.device(), /*non_blocking=*/true);
  if (share.size() == 1) {
    batch.input.layout = make_attention_layout(document_starts, sequence, model.attention_target());
    return batch;
  }
  batch.input.layout.batch = batch_size;
  batch.input.layout.sequence = local;
  batch.input.layout.recurs = true;
  batch.input.shared = make_context_layout(document_starts, sequence, share.size(), share.rank(),
                                           model.device(), model.scalar_type());
  batch.input.positions_N = upload(positions, model.device()).repeat({batch_size});
  return batch;
}

}  // namespace hearth
