#include "trainer/model/parameter_store.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "base/rng.h"

namespace hearth {
namespace {

// Parameters that one GEMM reads together must be stored without gaps: true when `next` continues the group of `name`.
bool same_group(const std::string& name, const std::string& next) {
  constexpr std::pair<std::string_view, std::string_view> kNeighbours[] = {
      {"q_proj.", "k_proj."}, {"k_proj.", "v_proj."}, {"gate_proj.", "up_proj."}};
  for (const auto& [first, second] : kNeighbours) {
    const auto at = name.find(first);
    if (at == std::string::npos) continue;
    return next == name.substr(0, at) + std::string(second) + name.substr(at + first.size());
  }
  return false;
}

bool is_vocabulary_table(const std::string& name) {
  return name == "model.embed_tokens.weight" || name == "lm_head.weight";
}

int64_t storage_rows(const ParameterSpec& spec) {
  const int64_t rows = spec.shape[0];
  return is_vocabulary_table(spec.name) ? (rows + kVocabPadding - 1) / kVocabPadding * kVocabPadding : rows;
}

std::vector<BucketGroup> storage_groups(const std::vector<ParameterSpec>& specs) {
  std::vector<BucketGroup> groups;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (i == 0 || !same_group(specs[i - 1].name, specs[i].name)) groups.emplace_back();
    const int64_t elements = specs[i].numel() / specs[i].shape[0] * storage_rows(specs[i]);
    groups.back().parameters.push_back({specs[i].name, elements});
  }
  return groups;
}

at::Tensor view(const at::Tensor& arena, int64_t offset, std::vector<int64_t> shape) {
  int64_t elements = 1;
  for (const int64_t extent : shape) elements *= extent;
  return arena.narrow(0, offset, elements).view(shape);
}

}  // namespace

at::ScalarType torch_dtype(DType dtype) {
  switch (dtype) {
    case DType::F64: return at::kDouble;
    case DType::F32: return at::kFloat;
    case DType::F16: return at::kHalf;
    case DType::BF16: return at::kBFloat16;
    default: fail(ErrorKind::Usage, "a model cannot compute in {}", config_name(dtype));
  }
}

DType dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble: return DType::F64;
    case at::kFloat: return DType::F32;
    case at::kHalf: return DType::F16;
    case at::kBFloat16: return DType::BF16;
    default: fail(ErrorKind::Usage, "tensor of an unexpected dtype");
  }
}

ParameterStore::ParameterStore(const ModelConfig& config, DType dtype, at::Device device, WithGradients gradients,
                               int64_t data_parallel_size, int64_t bucket_elements) {
  const auto specs = parameter_specs(config);
  plan_ = plan_buckets(storage_groups(specs), bucket_elements, data_parallel_size);
  arena_ = at::zeros({plan_.arena_count()}, at::TensorOptions(device).dtype(torch_dtype(dtype)));
  if (gradients == WithGradients::Yes)
    grad_arena_ = at::zeros({plan_.arena_count()}, at::TensorOptions(device).dtype(at::kFloat));
  for (size_t i = 0; i < specs.size(); ++i) {
    Parameter p;
    p.spec = specs[i];
    p.offset = plan_.parameter(static_cast<int64_t>(i)).begin;
    p.storage = plan_.places[i].count;
    auto padded_shape = p.spec.shape;
    padded_shape[0] = storage_rows(p.spec);
    p.weight = view(arena_, p.offset, p.spec.shape);
    p.padded_weight = view(arena_, p.offset, padded_shape);
    if (grad_arena_.defined()) {
      p.main_grad = view(grad_arena_, p.offset, p.spec.shape);
      p.padded_main_grad = view(grad_arena_, p.offset, padded_shape);
    }
    by_name_[p.spec.name] = static_cast<int64_t>(i);
    parameters_.push_back(std::move(p));
  }
}

int64_t ParameterStore::index(const std::string& name) const {
  const auto found = by_name_.find(name);
  HEARTH_REQUIRE(found != by_name_.end(), "the model has no parameter '{}'", name);
  return found->second;
}

namespace {
// Neighbours first..last as one tensor over `arena`.
at::Tensor fused(const at::Tensor& arena, const Parameter& first, const Parameter& last) {
  if (!arena.defined()) return {};
  const int64_t elements = last.offset + last.storage - first.offset;
  auto shape = first.spec.shape;
  shape[0] = elements / (first.spec.numel() / first.spec.shape[0]);
  return view(arena, first.offset, shape);
}
}  // namespace

at::Tensor ParameterStore::fused_weight(const std::string& first, const std::string& last) const {
  return fused(arena_, at(first), at(last));
}
at::Tensor ParameterStore::fused_main_grad(const std::string& first, const std::string& last) const {
  return fused(grad_arena_, at(first), at(last));
}

void ParameterStore::initial_values(int64_t parameter_index, uint64_t seed, int64_t begin, int64_t end,
                                    float* out) const {
  const ParameterSpec& spec = parameters_[static_cast<size_t>(parameter_index)].spec;
  if (spec.init != InitKind::Normal) {
    std::fill(out, out + (end - begin), spec.init == InitKind::Ones ? 1.0f : 0.0f);
    return;
  }
  const CounterRng rng(seed, spec.name);
  at::parallel_for(begin, end, 4096, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i)
      out[i - begin] = static_cast<float>(rng.normal(static_cast<uint64_t>(i)) * spec.init_std);
  });
}

namespace {
constexpr int64_t kStagingElements = int64_t{1} << 24;  // 64 MiB of fp32 on the host at a time

// Fills elements [0, numel) of `weight` in pieces produced on the host by `produce(begin, end, float*)`.
template <class Produce>
void fill_in_pieces(const at::Tensor& weight, const Produce& produce) {
  const at::Tensor flat = weight.view({-1});
  const int64_t numel = flat.numel();
  at::Tensor staging = at::empty({std::min(numel, kStagingElements)}, at::kFloat);
  for (int64_t begin = 0; begin < numel; begin += kStagingElements) {
    const int64_t count = std::min(kStagingElements, numel - begin);
    produce(begin, begin + count, staging.data_ptr<float>());
    at::Tensor target = flat.narrow(0, begin, count);
    target.copy_(staging.narrow(0, 0, count));
  }
}
}  // namespace

void ParameterStore::initialize(uint64_t seed) {
  for (size_t i = 0; i < parameters_.size(); ++i)
    fill_in_pieces(parameters_[i].weight, [&](int64_t begin, int64_t end, float* out) {
      initial_values(static_cast<int64_t>(i), seed, begin, end, out);
    });
}

void ParameterStore::load(const TensorSource& source) {
  for (auto& p : parameters_) {
    HEARTH_CHECK(source.contains(p.spec.name), BadInput, "{} has no tensor '{}'", source.describe(), p.spec.name);
    const auto& stored = source.info(p.spec.name);
    HEARTH_CHECK(stored.shape == p.spec.shape, BadInput, "{}: '{}' has shape [{}], the model needs [{}]",
                 source.describe(), p.spec.name, fmt::join(stored.shape, ", "), fmt::join(p.spec.shape, ", "));
    fill_in_pieces(p.weight, [&](int64_t begin, int64_t end, float* out) {
      source.read_elements(p.spec.name, begin, end, DType::F32, out);
    });
  }
}

}  // namespace hearth
