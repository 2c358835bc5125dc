// The parameters of one rank's model, in one flat arena (and, for training, one flat fp32 gradient arena).
// Layout comes from a BucketPlan (parallel/zero/bucket_plan.h): buckets in backward order, groups of neighbours (q,k,v;
// gate,up) without gaps, so that a fused GEMM sees a group as one matrix. Embedding and head rows are padded to a
// multiple of kVocabPadding inside the arena only: no file ever sees the padding, which stays zero.
// Not thread-safe. Tensors handed out are views into the arenas and live as long as the store.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "parallel/zero/bucket_plan.h"
#include "trainer/checkpoint/tensor_source.h"
#include "trainer/model/model_config.h"

namespace hearth {

at::ScalarType torch_dtype(DType dtype);
DType dtype_of(const at::Tensor& tensor);

constexpr int64_t kVocabPadding = 128;  // rows; keeps every GEMM dimension a multiple of a 128-wide tile

struct Parameter {
  ParameterSpec spec;     // logical shape, HF name
  int64_t offset = 0;     // first element in the arena
  int64_t storage = 0;    // elements in the arena, padding rows included
  at::Tensor weight;      // [spec.shape], view
  at::Tensor main_grad;   // fp32, same shape, view; undefined without gradients
  at::Tensor padded_weight, padded_main_grad;  // with the padding rows (same as above where there are none)
};

enum class WithGradients { No, Yes };

class ParameterStore {
 public:
  ParameterStore(const ModelConfig& config, DType dtype, at::Device device, WithGradients gradients,
                 int64_t data_parallel_size, int64_t bucket_elements);

  const BucketPlan& plan() const { return plan_; }
  std::vector<Parameter>& parameters() { return parameters_; }
  const std::vector<Parameter>& parameters() const { return parameters_; }
  int64_t index(const std::string& name) const;
  const Parameter& at(const std::string& name) const { return parameters_[static_cast<size_t>(index(name))]; }

  // The neighbours `first`..`last` as one matrix [sum of rows, cols] (or one vector, for biases).
  at::Tensor fused_weight(const std::string& first, const std::string& last) const;
  at::Tensor fused_main_grad(const std::string& first, const std::string& last) const;

  at::Tensor& arena() { return arena_; }            // [plan.arena_count()], parameter dtype
  at::Tensor& grad_arena() { return grad_arena_; }  // [plan.arena_count()], fp32

  // Draws every weight from the counter-based generator: a pure function of (seed, name, element).
  void initialize(uint64_t seed);
  // The fp32 value that initialize() rounds, for master weights: elements [begin, end) of parameter `index`.
  void initial_values(int64_t index, uint64_t seed, int64_t begin, int64_t end, float* out) const;
  // Copies every parameter out of `source`, converting; names and shapes must match (Error{BadInput}).
  void load(const TensorSource& source);

 private:
  BucketPlan plan_;
  std::vector<Parameter> parameters_;
  std::unordered_map<std::string, int64_t> by_name_;
  at::Tensor arena_, grad_arena_;
};

}  // namespace hearth
