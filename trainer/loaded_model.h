// A model ready to compute: the MODEL argument of eval, generate and export, opened and loaded onto one device.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "data/tokenizer/tokenizer.h"
#include "trainer/interchange/model_source.h"
#include "trainer/model/transformer.h"

namespace hearth {

struct LoadedModel {
  ModelBundle bundle;
  std::unique_ptr<ParameterStore> parameters;
  std::unique_ptr<Transformer> transformer;

  // Throws Error{BadInput} that says what to do where there is none.
  const Tokenizer& require_tokenizer() const;
  // Ids after which generation ends.
  std::vector<int32_t> eos_ids() const;
};

// Computes in `dtype`, or in the stored one. Errors as open_model.
LoadedModel load_model(FileSystem& fs, const std::string& model, std::optional<DType> dtype, at::Device device);
LoadedModel load_model(ModelBundle bundle, std::optional<DType> dtype, at::Device device);

}  // namespace hearth
