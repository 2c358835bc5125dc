#include "trainer/bench/random_tensors.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "kernels/counter_hash.h"

namespace hearth {

RandomTensors::RandomTensors(const ModelConfig& config, uint64_t seed)
    : seed_(seed), specs_(parameter_specs(config)) {
  for (const ParameterSpec& spec : specs_) {
    index_[spec.name] = infos_.size();
    infos_.push_back({spec.name, DType::BF16, spec.shape});
  }
}

size_t RandomTensors::at(const std::string& name) const {
  const auto found = index_.find(name);
  HEARTH_CHECK(found != index_.end(), BadInput, "random weights have no tensor '{}'", name);
  return found->second;
}

const TensorInfo& RandomTensors::info(const std::string& name) const {
  return infos_[at(name)];
}

void RandomTensors::read_elements(const std::string& name, int64_t begin, int64_t end, DType dtype,
                                  void* out) const {
  const size_t number = at(name);
  const ParameterSpec& spec = specs_[number];
  const uint64_t stream = kernels::counter_bits(seed_, number);
  const float width = static_cast<float>(spec.init_std * std::sqrt(12.0));  // of the uniform distribution
  std::vector<float> converted(dtype == DType::F32 ? 0 : static_cast<size_t>(end - begin));
  float* values = dtype == DType::F32 ? static_cast<float*>(out) : converted.data();
  at::parallel_for(begin, end, int64_t{1} << 16, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const auto bits = static_cast<uint32_t>(kernels::counter_bits(stream, static_cast<uint64_t>(i)) >> 40);
      values[i - begin] = (static_cast<float>(bits) * 0x1p-24f - 0.5f) * width;
    }
  });
  if (spec.init == InitKind::Ones) std::fill(values, values + (end - begin), 1.0f);
  if (spec.init == InitKind::Zeros) std::fill(values, values + (end - begin), 0.0f);
  if (dtype != DType::F32) convert(DType::F32, values, dtype, out, end - begin);
}

}  // namespace hearth
