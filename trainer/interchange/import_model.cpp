#include "trainer/interchange/import_model.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "trainer/checkpoint/checkpoint_saver.h"
#include "trainer/interchange/finite.h"
#include "trainer/model/model_config_json.h"

namespace hearth {
namespace {

// Whole tensors, dealt out in order so that every rank writes about the same number of bytes.
std::vector<TensorPiece> pieces_of_rank(const TensorSource& tensors, std::optional<DType> dtype, int rank,
                                        int world) {
  std::vector<TensorPiece> all, mine;
  int64_t total = 0;
  for (const TensorInfo& tensor : tensors.tensors()) {
    all.push_back(TensorPiece::whole(tensor.name, dtype.value_or(tensor.dtype), tensor.shape));
    total = checked_add(total, all.back().bytes());
  }
  int64_t before = 0;
  for (TensorPiece& piece : all) {
    const int64_t bytes = piece.bytes();
    const auto owner = static_cast<int>(static_cast<double>(before) / static_cast<double>(total) * world);
    if (std::min(owner, world - 1) == rank) mine.push_back(std::move(piece));
    before += bytes;
  }
  return mine;
}

std::string state_text(const ModelBundle& model) {
  nlohmann::json state;
  state["step"] = 0;
  state["model"] = model_config_to_json(model.config);
  state["imported_from"] = model.origin;
  return state.dump(2) + "\n";
}

std::string config_hash(const ModelConfig& config) {
  return xxh3_128_hex(model_config_to_json(config).dump());
}

}  // namespace

void import_model(FileSystem& fs, ControlPlane& control, Log& log, const ModelBundle& model,
                  const ImportOptions& options) {
  HEARTH_CHECK(!fs.exists(options.output), Usage, "{}: exists already; choose another --output or remove it",
               options.output);
  const std::vector<TensorPiece> pieces =
      pieces_of_rank(*model.tensors, options.dtype, control.rank(), control.world_size());
  int64_t done = 0, total = 0;
  for (const TensorPiece& piece : pieces) total += piece.bytes();
  const PieceReader read = [&](const TensorPiece& piece, int64_t first, int64_t count, void* out) {
    model.tensors->read_elements(piece.name, first, first + count, piece.dtype, out);
    const int64_t bad = first_non_finite(piece.dtype, out, count);
    HEARTH_CHECK(bad < 0, Numeric, "{}: {} has a value that is not finite in {} at element {}", model.origin,
                 piece.name, config_name(piece.dtype), first + bad);
    done += count * size_bytes(piece.dtype);
    if (options.progress) options.progress(done, total);
  };
  const CheckpointIdentity identity{.step = 0,
                                    .mesh = "imported",
                                    .config_hash = config_hash(model.config),
                                    .data_fingerprint = "",
                                    .tokenizer_digest = model.tokenizer ? model.tokenizer->digest() : ""};
  std::vector<ExtraFile> extras;
  for (const auto& [name, text] : traveling_files(model)) extras.push_back({"tokenizer/" + name, text});
  extras.push_back(
      {"config.json", hf_config_text(model.config, model.ids, options.dtype.value_or(model.stored_dtype))});
  save_checkpoint(fs, control, log, options.output, identity, pieces, read, state_text(model), extras);
}

}  // namespace hearth
