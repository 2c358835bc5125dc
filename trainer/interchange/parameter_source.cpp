#include "trainer/interchange/parameter_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "base/error.h"

namespace hearth {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t extent : shape) text += (text.empty() ? "" : ", ") + std::to_string(extent);
  return text;
}

bool is_float(DType dtype) {
  return dtype == DType::F64 || dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16;
}

// Buffers that transformers 4.30 and before stored; every reader rebuilds them from the configuration.
bool is_rotary_buffer(std::string_view name) {
  return name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".rotary_emb.cos_cached") ||
         name.ends_with(".rotary_emb.sin_cached");
}

class BoundParameters final : public TensorSource {
 public:
  BoundParameters(std::vector<TensorInfo> infos, std::unique_ptr<TensorSource> raw)
      : infos_(std::move(infos)), raw_(std::move(raw)) {
    for (size_t i = 0; i < infos_.size(); ++i) index_.emplace(infos_[i].name, i);
  }
  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  bool contains(const std::string& name) const override { return index_.contains(name); }
  const TensorInfo& info(const std::string& name) const override {
    const auto found = index_.find(name);
    HEARTH_CHECK(found != index_.end(), BadInput, "{}: the model has no parameter {}", describe(), name);
    return infos_[found->second];
  }
  // Cut rows lie behind the kept ones, so that element numbers are the same in both.
  void read_elements(const std::string& name, int64_t begin, int64_t end, DType dtype,
                     void* out) const override {
    HEARTH_REQUIRE(0 <= begin && begin <= end && end <= info(name).numel(), "{}: elements [{}, {}) of {}",
                   name, begin, end, info(name).numel());
    raw_->read_elements(name, begin, end, dtype, out);
  }
  std::string describe() const override { return raw_->describe(); }

 private:
  std::vector<TensorInfo> infos_;
  std::map<std::string, size_t> index_;
  std::unique_ptr<TensorSource> raw_;
};

bool equal_tensors(const TensorSource& source, const std::string& a, const std::string& b, int64_t numel) {
  std::vector<float> left(static_cast<size_t>(std::min(numel, kPieceElements))), right(left.size());
  bool equal = true;
  for_each_piece(numel, kPieceElements, [&](int64_t begin, int64_t end) {
    if (!equal) return;
    source.read_elements(a, begin, end, DType::F32, left.data());
    source.read_elements(b, begin, end, DType::F32, right.data());
    equal = std::memcmp(left.data(), right.data(), static_cast<size_t>(end - begin) * sizeof(float)) == 0;
  });
  return equal;
}

// Collects problems, so that a user sees all of them at once; long lists are cut.
class Problems {
 public:
  template <class... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    if (++count_ <= 20) text_ += "\n  " + fmt::format(format, std::forward<Args>(args)...);
  }
  void throw_if_any(const std::string& source) const {
    HEARTH_CHECK(count_ == 0, BadInput, "{}: the weights do not fit the configuration ({} problems):{}{}",
                 source, count_, text_, count_ > 20 ? fmt::format("\n  ... and {} more", count_ - 20) : "");
  }

 private:
  int count_ = 0;
  std::string text_;
};

bool shape_fits(const ParameterSpec& spec, const std::vector<int64_t>& shape, Extras extras) {
  if (shape == spec.shape) return true;
  const bool vocabulary = spec.name == kEmbedding || spec.name == kHead;
  return vocabulary && extras == Extras::Ignore && shape.size() == 2 && shape[1] == spec.shape[1] &&
         shape[0] >= spec.shape[0];
}

void check_extra(const TensorInfo& tensor, const ModelConfig& config, const TensorSource& raw,
                 Problems& problems) {
  if (is_rotary_buffer(tensor.name)) return;
  if (tensor.name != kHead || !config.tie_word_embeddings) {
    problems.add("{} [{}]: unexpected; a {} has no such parameter", tensor.name, shape_text(tensor.shape),
                 config.family);
    return;
  }
  const std::vector<int64_t> expected{config.vocab_size, config.hidden_size};
  const bool same = tensor.shape == expected && is_float(tensor.dtype) && raw.contains(kEmbedding) &&
                    raw.info(kEmbedding).shape == expected && is_float(raw.info(kEmbedding).dtype) &&
                    equal_tensors(raw, kHead, kEmbedding, tensor.numel());
  if (!same)
    problems.add("{}: differs from {}, but tie_word_embeddings is true; set it to false to keep both", kHead,
                 kEmbedding);
}

}  // namespace

std::unique_ptr<TensorSource> bind_parameters(const ModelConfig& config, std::unique_ptr<TensorSource> raw,
                                              Extras extras) {
  // Each layer needs tensors of its own; checked first, because the list of parameters is as long as the
  // config says.
  HEARTH_CHECK(config.num_hidden_layers <= static_cast<int64_t>(raw->tensors().size()), BadInput,
               "{}: the configuration says {} layers, but there are only {} tensors", raw->describe(),
               config.num_hidden_layers, raw->tensors().size());
  Problems problems;
  std::vector<TensorInfo> infos;
  std::set<std::string> known;
  for (const ParameterSpec& spec : parameter_specs(config)) {
    known.insert(spec.name);
    if (!raw->contains(spec.name)) {
      const bool untied = spec.name == kHead;
      problems.add(
          "{} [{}]: missing{}", spec.name, shape_text(spec.shape),
          untied ? "; if the head is the embedding, config.json must say tie_word_embeddings = true" : "");
      continue;
    }
    const TensorInfo& found = raw->info(spec.name);
    if (!shape_fits(spec, found.shape, extras))
      problems.add("{}: shape [{}], expected [{}]", spec.name, shape_text(found.shape),
                   shape_text(spec.shape));
    if (!is_float(found.dtype))
      problems.add("{}: element type {}, expected a floating type", spec.name, safetensors_name(found.dtype));
    infos.push_back({spec.name, found.dtype, spec.shape});
  }
  if (extras == Extras::Refuse)
    for (const TensorInfo& tensor : raw->tensors())
      if (!known.contains(tensor.name)) check_extra(tensor, config, *raw, problems);
  problems.throw_if_any(raw->describe());
  return std::make_unique<BoundParameters>(std::move(infos), std::move(raw));
}

void for_each_piece(int64_t numel, int64_t max_elements, const std::function<void(int64_t, int64_t)>& visit) {
  for (int64_t begin = 0; begin < numel; begin += max_elements)
    visit(begin, std::min(numel, begin + max_elements));
}

DType common_dtype(const TensorSource& source) {
  std::set<DType> seen;
  for (const TensorInfo& tensor : source.tensors())
    if (tensor.shape.size() >= 2) seen.insert(tensor.dtype);
  return seen.size() == 1 ? *seen.begin() : DType::F32;
}

}  // namespace hearth
