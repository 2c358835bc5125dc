#include "trainer/micro_batch.h"

#include <ATen/ops/empty.h>

#include "base/error.h"
#include "kernels/cross_entropy_op.h"

namespace hearth {
MicroBatch make_micro_batch(const std::vector<Sample>& samples, DocumentMask mask, const Transformer& model) {
  HEARTH_REQUIRE(!samples.empty(), "a micro-batch without samples");
  const auto sequence = static_cast<int64_t>(samples[0].loss_mask.size());
  const auto rows = static_cast<int64_t>(samples.size()) * sequence;
  const auto options = at::TensorOptions(at::kLong).pinned_memory(model.device().is_cuda());
  at::Tensor ids = at::empty({rows}, options), targets = at::empty({rows}, options);
  auto* id = ids.data_ptr<int64_t>();
  auto* target = targets.data_ptr<int64_t>();
  MicroBatch batch;
  std::vector<std::vector<int32_t>> document_starts;
  for (const Sample& sample : samples) {
    HEARTH_REQUIRE(static_cast<int64_t>(sample.tokens.size()) == sequence + 1, "sample of {} tokens, expected {}",
                   sample.tokens.size(), sequence + 1);
    for (const int32_t token : sample.tokens)
      HEARTH_CHECK(token >= 0 && token < model.config().vocab_size, BadInput,
                   "dataset {}, shard {}, window {}: token id {} is not below the model's vocabulary of {}",
                   sample.provenance.dataset, sample.provenance.shard, sample.provenance.window, token,
                   model.config().vocab_size);
    for (int64_t t = 0; t < sequence; ++t) {
      const auto at = static_cast<size_t>(t);
      *id++ = sample.tokens[at];
      *target++ = sample.loss_mask[at] ? sample.tokens[at + 1] : kernels::kIgnoreIndex;
      batch.valid_targets += sample.loss_mask[at] ? 1 : 0;
    }
    document_starts.push_back(mask == DocumentMask::Yes ? sample.document_starts : std::vector<int32_t>{0});
  }
  batch.input.ids_N = ids.to(model.device(), /*non_blocking=*/true);
  batch.targets_N = targets.to(model.device(), /*non_blocking=*/true);
  batch.input.layout = make_attention_layout(document_starts, sequence, model.device(), model.scalar_type());
  return batch;
}

}  // namespace hearth
