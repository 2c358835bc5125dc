#include "trainer/prompt_logits.h"

#include "trainer/loaded_model.h"

namespace hearth {

std::vector<float> prompt_logits(Job& job, const ParallelConfig& layout, const ModelConfig& config,
                                 const TensorSource& tensors, const std::vector<int32_t>& ids) {
  const ModelShare share = load_share(config, tensors, DType::F32, at::kCPU, job, layout);
  const at::Tensor logits = share.inference->logits({ids.begin(), ids.end()}, /*caches=*/nullptr,
                                                    /*last=*/static_cast<int64_t>(ids.size()));
  const float* values = logits.const_data_ptr<float>();
  return {values, values + logits.numel()};
}

}  // namespace hearth
