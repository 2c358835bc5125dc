// `hearth import`: an HF directory or a GGUF file becomes a checkpoint that training and every verb can start
// from.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "base/dtype.h"
#include "base/file_system.h"
#include "base/log.h"
#include "parallel/control_plane.h"
#include "trainer/interchange/model_source.h"

namespace hearth {

// Called with this rank's bytes done and in all, now and then. May be empty.
using ProgressFunction = std::function<void(int64_t done, int64_t total)>;

struct ImportOptions {
  std::string output;          // the checkpoint folder; must not exist
  std::optional<DType> dtype;  // default: each tensor as it is stored (GGUF: fp32)
  ProgressFunction progress;
};

// Collective: the ranks split the writing. Writes weights, tokenizer and configuration as step 0 by the
// commit protocol of checkpoints (save_checkpoint): the folder appears whole or not at all. Host memory stays
// at a few MiB a rank. A value that is not finite, or is not after conversion to `dtype`, is Error{Numeric}.
void import_model(FileSystem& fs, ControlPlane& control, Log& log, const ModelBundle& model,
                  const ImportOptions& options);

}  // namespace hearth
