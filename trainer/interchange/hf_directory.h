// The weights of an HF directory: model.safetensors, or the shards that model.safetensors.index.json names;
// where there are none, pytorch_model.bin or its shards (torch_pickle.h). Sizes and headers are checked when
// it opens; bytes are read when asked for. Thread-safe. Errors: Error{BadInput} (content), Error{Io} (the
// operating system).
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/file_system.h"
#include "trainer/checkpoint/tensor_source.h"

namespace hearth {

// Does `directory` look like an HF model directory (holds config.json and weights of some form)?
bool is_hf_directory(FileSystem& fs, const std::string& directory);

// All tensors of the directory as they are stored. An index must name files of this directory only (no path
// separators), that exist, and put every tensor where it really is.
std::unique_ptr<TensorSource> open_hf_weights(FileSystem& fs, const std::string& directory);

// Files that travel with a model (tokenizer, chat template, generation_config.json), by name -> content;
// those that the directory has. Each at most 256 MiB.
using NamedTexts = std::vector<std::pair<std::string, std::string>>;
NamedTexts read_companion_files(FileSystem& fs, const std::string& directory);

// The content of `name`, or null.
const std::string* find_text(const NamedTexts& files, std::string_view name);

}  // namespace hearth
