#include "trainer/loaded_model.h"

#include "base/error.h"

namespace hearth {

const Tokenizer& LoadedModel::require_tokenizer() const {
  HEARTH_CHECK(bundle.tokenizer != nullptr, BadInput,
               "{} carries no tokenizer; put tokenizer.json (or tokenizer.model) into that folder", bundle.origin);
  return *bundle.tokenizer;
}

std::vector<int32_t> LoadedModel::eos_ids() const {
  std::vector<int32_t> ids;
  for (const int64_t id : bundle.ids.eos) ids.push_back(checked_cast<int32_t>(id));
  return ids;
}

LoadedModel load_model(FileSystem& fs, const std::string& model, std::optional<DType> dtype, at::Device device) {
  return load_model(open_model(fs, model), dtype, device);
}

LoadedModel load_model(ModelBundle bundle, std::optional<DType> dtype, at::Device device) {
  LoadedModel loaded;
  loaded.bundle = std::move(bundle);
  const ModelConfig& config = loaded.bundle.config;
  loaded.parameters = std::make_unique<ParameterStore>(config, dtype.value_or(loaded.bundle.stored_dtype), device,
                                                       WithGradients::No, /*data_parallel_size=*/1,
                                                       /*bucket_elements=*/int64_t{1} << 40);
  loaded.parameters->load(*loaded.bundle.tensors);
  loaded.transformer = std::make_unique<Transformer>(config, *loaded.parameters, RecomputeChoice{});
  return loaded;
}

}  // namespace hearth
