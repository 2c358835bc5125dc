// The weights of a model that was never trained, made where they are read: a teacher for benchmarks, of any
// size, without a file. Values are uniform with the standard deviation that training starts from; norms are
// ones. Thread-safe.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "trainer/checkpoint/tensor_source.h"
#include "trainer/model/model_config.h"

namespace hearth {

class RandomTensors final : public TensorSource {
 public:
  RandomTensors(const ModelConfig& config, uint64_t seed);
  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  bool contains(const std::string& name) const override { return index_.contains(name); }
  const TensorInfo& info(const std::string& name) const override;
  void read_elements(const std::string& name, int64_t begin, int64_t end, DType dtype,
                     void* out) const override;
  std::string describe() const override { return "random weights"; }

 private:
  size_t at(const std::string& name) const;

  uint64_t seed_;
  std::vector<ParameterSpec> specs_;
  std::vector<TensorInfo> infos_;
  std::map<std::string, size_t> index_;
};

}  // namespace hearth
