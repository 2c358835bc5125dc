// Tensors of a model that exist nowhere: every element is drawn for its place, so slices of any size agree.
#pragma once

#include "base/error.h"
#include "base/rng.h"
#include "trainer/checkpoint/tensor_source.h"

namespace hearth::testing {

class RandomTensors : public TensorSource {
 public:
  explicit RandomTensors(std::vector<TensorInfo> infos) : infos_(std::move(infos)) {}
  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  bool contains(const std::string& name) const override { return find(name) != nullptr; }
  const TensorInfo& info(const std::string& name) const override {
    HEARTH_REQUIRE(contains(name), "no tensor '{}'", name);
    return *find(name);
  }
  void read_elements(const std::string& name, int64_t begin, int64_t end, DType dtype,
                     void* out) const override {
    HEARTH_REQUIRE(dtype == DType::F32 && 0 <= begin && begin <= end && end <= info(name).numel(),
                   "elements {} to {} of '{}' in another type or beyond its end", begin, end, name);
    ++reads_;
    const CounterRng rng(/*seed=*/11, name);
    for (int64_t i = begin; i < end; ++i)
      static_cast<float*>(out)[i - begin] = static_cast<float>(0.1 * rng.normal(static_cast<uint64_t>(i)));
  }
  std::string describe() const override { return "random tensors"; }
  int64_t reads() const { return reads_; }  // calls of read_elements

 private:
  const TensorInfo* find(const std::string& name) const {
    for (const TensorInfo& info : infos_)
      if (info.name == name) return &info;
    return nullptr;
  }
  std::vector<TensorInfo> infos_;
  mutable int64_t reads_ = 0;
};

}  // namespace hearth::testing
