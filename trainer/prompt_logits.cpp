#include "trainer/prompt_logits.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "trainer/model/transformer.h"

namespace hearth {

std::vector<float> prompt_logits(const ModelConfig& config, const TensorSource& tensors,
                                 const std::vector<int32_t>& ids) {
  const at::NoGradGuard no_grad;
  ParameterStore parameters(config, DType::F32, at::kCPU, WithGradients::No, /*data_parallel_size=*/1,
                            /*bucket_elements=*/int64_t{1} << 40);
  parameters.load(tensors);
  Transformer model(config, parameters, RecomputeChoice{});
  const auto length = static_cast<int64_t>(ids.size());
  ModelInput input;
  input.ids_N = at::empty({length}, at::kLong);
  std::copy(ids.begin(), ids.end(), input.ids_N.data_ptr<int64_t>());
  input.layout.batch = 1;
  input.layout.sequence = length;
  const at::Tensor logits = model.logits(model.hidden_states(input)).contiguous();
  const float* values = logits.const_data_ptr<float>();
  return {values, values + logits.numel()};
}

}  // namespace hearth
