// Low-rank adapters outside a training: a base model and its adapters read as one model (merged on the fly),
// and PEFT's files (adapter_config.json, adapter_model.safetensors). No torch.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/file_system.h"
#include "trainer/checkpoint/tensor_source.h"
#include "trainer/model/lora_adapters.h"
#include "trainer/model/model_config.h"

namespace hearth {

// The base's tensors, W + scale B A where `adapters` has W's ("q_proj.lora_A.weight" beside "q_proj.weight").
// Sums in fp32, one rounding to the type that is read. Thread-safe where both are. Throws Error{BadInput} for
// adapters that do not fit the base.
std::unique_ptr<TensorSource> merged_source(std::shared_ptr<const TensorSource> base,
                                            std::shared_ptr<const TensorSource> adapters,
                                            const LoraShape& lora);

// A PEFT directory: which adapters it holds, and where the base lies.
struct PeftAdapter {
  LoraShape lora;
  std::string base_model;                       // base_model_name_or_path
  std::shared_ptr<const TensorSource> tensors;  // Hearth's names
};
bool is_peft_directory(FileSystem& fs, const std::string& path);
// Throws Error{BadInput} for another method than LoRA on the linears of the layers, or one whose effect
// differs (bias, DoRA, per-module ranks).
PeftAdapter open_peft(FileSystem& fs, const std::string& path, const ModelConfig& base);
std::string peft_base_model(FileSystem& fs, const std::string& path);

// Publishes adapters as a PEFT directory: written beside `output` and renamed. One process calls it. Throws
// Error{Usage} where `output` exists.
struct AdapterExport {
  const TensorSource& adapters;  // Hearth's names; what is no adapter is left out
  const ModelConfig& base;
  LoraShape lora;
  std::string base_model;
  std::optional<DType> dtype;  // default: as stored
};
void export_adapters(FileSystem& fs, const std::string& output, const AdapterExport& model);

// adapter_config.json as PEFT writes it.
std::string peft_config_text(const LoraShape& lora, const std::string& base_model);
// Hearth's name -> PEFT's ("base_model.model." before it).
std::string peft_name(const std::string& name);

}  // namespace hearth
