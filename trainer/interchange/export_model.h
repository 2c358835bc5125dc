// `hearth export`: a model becomes an HF directory that serving engines load unchanged.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/file_system.h"
#include "parallel/control_plane.h"
#include "trainer/interchange/import_model.h"
#include "trainer/interchange/model_source.h"

namespace hearth {

// Logits in fp32, [ids.size(), vocab_size] row-major, of the model that (config, tensors) describe. The
// trainer's own forward pass; handed in, because this folder knows no torch. All ranks call it alike, and may
// compute together; what rank 0 gets counts.
using LogitsFunction = std::function<std::vector<float>(
    const ModelConfig& config, const TensorSource& tensors, const std::vector<int32_t>& ids)>;

enum class IfOutputExists {
  Refuse,   // unless it is an empty folder
  Replace,  // when it holds a model (config.json): the old one is moved aside until the new one is in place
};

// Whether a model that forgot more than its run allowed may be published.
enum class IfForgotten { Refuse, Publish };

// Throws Error{Numeric} for a model that forgot more than its run allowed, or warns where it is published all
// the same.
void check_forgetting(const ModelBundle& model, IfForgotten if_forgotten,
                      const std::function<void(const std::string&)>& warn);

struct ExportOptions {
  std::string output;          // the folder to publish
  std::optional<DType> dtype;  // F32, BF16 or F16; default: each tensor as it is stored
  IfOutputExists if_exists = IfOutputExists::Refuse;
  IfForgotten if_forgotten = IfForgotten::Refuse;
  int64_t max_shard_bytes = 5'000'000'000;
  LogitsFunction logits;  // empty: logits are not compared, only configuration and tensors
  ProgressFunction progress;
  std::function<void(const std::string&)> warn;  // called on rank 0; may be empty
};

// Collective: the ranks split the shards. Writes into `output`.partial: safetensors (sharded above
// max_shard_bytes, with index), config.json, generation_config.json, tokenizer files and chat template; makes
// all of it durable; opens it again as any reader would and compares
//   the configuration, every tensor bit for bit (after rounding the source to the type written), and the
//   logits of a fixed prompt (max |a - b| <= 1e-5 max |b|);
// and only then renames it to `output`. A failure leaves `output` as it was and no .partial folder.
// Vocabulary rows beyond config.vocab_size never reach this (bind_parameters cuts what Hearth padded).
// Errors: Usage (output), BadInput (the tokenizer's EOS is not among the EOS
// ids), Numeric (a value that is not finite, or overflows the type asked for), Corrupt (what was read back
// differs from what was written), Config, Io, NoSpace.
void export_model(FileSystem& fs, ControlPlane& control, const ModelBundle& model,
                  const ExportOptions& options);

}  // namespace hearth
