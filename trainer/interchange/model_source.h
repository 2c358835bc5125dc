// The MODEL argument of every verb: a Hearth checkpoint, a run folder (its newest verified checkpoint), an HF
// directory, a PEFT directory of LoRA adapters, or, where the verb allows it, a GGUF file. Adapters, of a
// checkpoint or of PEFT, are read merged into the base model that they name.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/file_system.h"
#include "base/log.h"
#include "data/tokenizer/tokenizer.h"
#include "parallel/control_plane.h"
#include "trainer/checkpoint/tensor_source.h"
#include "trainer/interchange/hf_config.h"
#include "trainer/interchange/hf_directory.h"
#include "trainer/model/lora_adapters.h"
#include "trainer/model/model_config.h"

namespace hearth {

enum class ModelKind { Checkpoint, HfDirectory, Gguf };

// What an incremental run did to the loss on old held-out data, nats per token.
struct Forgetting {
  double before = 0, after = 0;
  double allowed = 0;  // rise that the run's configuration allows; 0: no bound
  bool exceeds() const { return allowed > 0 && !(after - before <= allowed); }
};

// A model that was opened: config and headers are checked, weights stay on disk until read.
struct ModelBundle {
  ModelKind kind = ModelKind::HfDirectory;
  ModelConfig config;
  std::unique_ptr<TensorSource> tensors;  // exactly parameter_specs(config), HF names; thread-safe
  NamedTexts companion_files;             // what read_companion_files finds: name -> content; may be empty
  std::shared_ptr<const Tokenizer> tokenizer;  // null where the model has none
  SpecialTokenIds
      ids;  // of config.json, generation_config.json and the tokenizer; EOS ids of all, in this order
  std::string chat_template;  // Jinja text, empty where the model has none
  DType stored_dtype = DType::F32;
  std::string origin;                    // what was opened, for messages: path and kind
  int64_t step = 0;                      // of a checkpoint
  std::optional<Forgetting> forgetting;  // of a checkpoint of an incremental run
  // Of adapters (rank > 0): what they are, where the base was found, and the two that `tensors` are merged
  // from.
  LoraShape lora;
  std::string base_model;
  std::shared_ptr<const TensorSource> base, adapters;
};

enum class AcceptGguf { No, Yes };

// Config first, then weights, then tokenizer. Collective: all ranks of `control` call it with the same
// `model` and get the same one. Errors: Error{Usage} where `model` is nothing of the kind, Error{BadInput}
// (HF, GGUF), Error{Corrupt} (no checkpoint that verifies).
ModelBundle open_model(FileSystem& fs, ControlPlane& control, Log& log, const std::string& model,
                       AcceptGguf gguf = AcceptGguf::No);

// The same for one process that logs rejected checkpoints to stderr.
ModelBundle open_model(FileSystem& fs, const std::string& model, AcceptGguf gguf = AcceptGguf::No);

// The files of the bundle as a checkpoint carries them ("tokenizer/<name>" there): the companions, with the
// ids that are known written into generation_config.json, so that nothing of config.json's ids is lost.
NamedTexts traveling_files(const ModelBundle& model);

}  // namespace hearth
