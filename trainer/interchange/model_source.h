// The MODEL argument of every verb: a Hearth checkpoint, a run folder (its newest verified checkpoint), an HF
// directory, or, where the verb allows it, a GGUF file.
#pragma once

#include <memory>
#include <string>

#include "base/dtype.h"
#include "base/file_system.h"
#include "trainer/checkpoint/tensor_source.h"
#include "trainer/interchange/hf_config.h"
#include "trainer/interchange/hf_directory.h"
#include "trainer/model/model_config.h"

namespace hearth {

enum class ModelKind { Checkpoint, HfDirectory, Gguf };

// A model that was opened: config and headers are checked, weights stay on disk until read.
struct ModelBundle {
  ModelKind kind = ModelKind::HfDirectory;
  ModelConfig config;
  std::unique_ptr<TensorSource> tensors;  // exactly parameter_specs(config), HF names; thread-safe
  NamedTexts companion_files;  // tokenizer, chat template, generation_config.json: file name -> content; may
                               // be empty
  SpecialTokenIds ids;         // eos (a list), bos, pad
  std::string chat_template;   // Jinja text, empty where the model has none
  DType stored_dtype = DType::F32;
  std::string origin;  // what was opened, for messages: path and kind
  int64_t step = 0;    // of a checkpoint

  bool has_tokenizer() const;
};

enum class AcceptGguf { No, Yes };

// Config first, then weights, then tokenizer. Errors: Error{Usage} where `model` is nothing of the kind,
// Error{BadInput} (HF, GGUF), Error{Corrupt} (no verified checkpoint).
ModelBundle open_model(FileSystem& fs, const std::string& model, AcceptGguf gguf = AcceptGguf::No);

}  // namespace hearth
