#include "launch/commands/experiment.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>
#include <thread>

#include "base/error.h"
#include "parallel/binding.h"
#include "trainer/device.h"

namespace hearth {
namespace {

// The first id that two tokenizers spell differently, padding at the end of the larger one aside.
std::optional<int32_t> first_different_token(const Tokenizer& a, const Tokenizer& b) {
  const auto shared = static_cast<int32_t>(std::min(a.vocab_size(), b.vocab_size()));
  for (int32_t id = 0; id < shared; ++id)
    if (a.id_to_token(id) != b.id_to_token(id)) return id;
  return std::nullopt;
}

std::unique_ptr<ModelBundle> open_init_from(const LoadedConfig& loaded, CommandContext& context, Log& log) {
  return std::make_unique<ModelBundle>(
      open_model(context.fs, *context.job.control, log, *loaded.config.model.init_from));
}

// A kernel is loaded at its first use, which may wait for all work on the device; a recv that was posted
// ahead waits for a peer that may be waiting for that very kernel. The variable must be set before the first
// call of CUDA.
void load_kernels_before_the_first_step(const Mesh& mesh) {
  if (mesh.size(MeshAxis::Pp) > 1) ::setenv("CUDA_MODULE_LOADING", "EAGER", /*overwrite=*/0);
}

// Each rank's share of the cores it may use: all of them where the launcher bound it, its part where ranks
// share.
int compute_threads(const ControlPlane& control, const Environment& environment) {
  if (environment.omp_num_threads > 0) return environment.omp_num_threads;
  const auto cores = static_cast<int>(allowed_cores().size());
  const bool bound = cores < static_cast<int>(std::thread::hardware_concurrency());
  return std::max(1, bound ? cores : cores / control.local_world_size());
}

}  // namespace

ExperimentData open_data(FileSystem& fs, const DataConfig& config, MissingData missing) {
  ExperimentData data;
  const auto open = [&](const std::string& path) -> std::unique_ptr<Dataset> {
    if (missing == MissingData::Allow && !fs.exists(path + "/dataset.json")) {
      if (data.missing.empty()) data.missing = path;
      return nullptr;
    }
    return Dataset::open(fs, path);
  };
  for (const DatasetEntry& entry : config.train) {
    auto dataset = open(entry.path);
    if (dataset == nullptr) continue;
    data.digest += (data.digest.empty() ? "" : ",") + dataset->digest();
    data.text += fmt::format("{}{}  {} shards, {} tokens", data.text.empty() ? "" : "; ", entry.path,
                             dataset->num_shards(), dataset->num_tokens());
    data.train.push_back({std::move(dataset), entry.weight});
  }
  for (const DatasetEntry& entry : config.validation)
    if (auto dataset = open(entry.path)) data.validation.push_back(std::move(dataset));
  return data;
}

void require_one_tokenizer(const ExperimentData& data) {
  const Dataset& first = *data.train.front().dataset;
  const auto check = [&](const Dataset& other) {
    HEARTH_CHECK(
        other.tokenizer_digest() == first.tokenizer_digest(), BadInput,
        "{} and {} were prepared with different tokenizers (digests {} and {}): prepare both with one",
        first.directory(), other.directory(), first.tokenizer_digest(), other.tokenizer_digest());
  };
  for (const auto& entry : data.train) check(*entry.dataset);
  for (const auto& dataset : data.validation) check(*dataset);
}

std::unique_ptr<ModelBundle> initial_weights(const LoadedConfig& loaded, const ExperimentData& data,
                                             std::unique_ptr<ModelBundle> bundle, CommandContext& context,
                                             Log& log) {
  if (!loaded.config.model.init_from) return nullptr;
  if (bundle == nullptr)
    bundle = open_init_from(loaded, context, log);  // throws: complete_config did not find it
  const std::string& digest = data.train.front().dataset->tokenizer_digest();
  HEARTH_CHECK(bundle->tokenizer == nullptr || bundle->tokenizer->digest() == digest, BadInput,
               "model.init_from {} carries another tokenizer (digest {}) than the shards were prepared with "
               "(digest {}): "
               "its ids would mean something else. Prepare the data with --tokenizer {}",
               bundle->origin, bundle->tokenizer->digest(), digest, *loaded.config.model.init_from);
  return bundle;
}

std::unique_ptr<ModelBundle> open_teacher(const LoadedConfig& loaded, const ExperimentData& data,
                                          CommandContext& context, Log& log) {
  const auto& path = loaded.config.objective.teacher;
  if (!path) return nullptr;
  auto teacher = std::make_unique<ModelBundle>(open_model(context.fs, *context.job.control, log, *path));
  const Dataset& dataset = *data.train.front().dataset;
  HEARTH_CHECK(
      teacher->tokenizer != nullptr, BadInput,
      "objective.teacher {} carries no tokenizer, so nobody can tell whether its ids mean the same tokens as "
      "those of {}; put its tokenizer.json beside its weights",
      teacher->origin, dataset.directory());
  if (teacher->tokenizer->digest() == dataset.tokenizer_digest()) return teacher;
  const auto own = Tokenizer::load(context.fs, dataset.tokenizer_directory());
  const auto different = first_different_token(*own, *teacher->tokenizer);
  HEARTH_CHECK(
      !different, BadInput,
      "objective.teacher {} has another tokenizer than {}: id {} is '{}' there and '{}' in the data. A "
      "teacher's probabilities say something about the student's tokens only where the ids mean the same: "
      "choose a teacher and a student of one family, or prepare the data with the teacher's tokenizer and "
      "train a student on that",
      teacher->origin, dataset.directory(), *different, teacher->tokenizer->id_to_token(*different),
      own->id_to_token(*different));
  return teacher;
}

std::unique_ptr<ModelBundle> complete_config(LoadedConfig& loaded, const ExperimentData& data,
                                             CommandContext& context, Log& log) {
  std::unique_ptr<ModelBundle> bundle;
  if (loaded.config.model.init_from && context.fs.exists(*loaded.config.model.init_from)) {
    bundle = open_init_from(loaded, context, log);
    adopt_model_shape(loaded, bundle->config, *loaded.config.model.init_from);
  }
  if (!data.train.empty())
    adopt_vocab_size(loaded, data.train.front().dataset->vocab_size(),
                     "tokenizer of " + data.train.front().dataset->directory());
  return bundle;
}

// Ranks that share a device look like hosts of their own to NCCL; the variable must be set before the first
// Comm.
void share_device(CommandContext& context, at::Device device, Log& log) {
  if (!device.is_cuda()) return;
  const auto id = nccl_host_id(*context.job.control, static_cast<int>(num_cuda_devices()));
  if (!id) return;
  ::setenv("NCCL_HOSTID", id->c_str(), /*overwrite=*/1);
  log.warning(
      "event=shared_device local_ranks={} devices={}: several ranks share a GPU; good for debugging layouts, "
      "never for speed (CUDA MPS makes it about ten times faster: nvidia-cuda-mps-control -d)",
      context.job.control->local_world_size(), num_cuda_devices());
}

ComputePlace take_device(const std::string& choice, const Mesh& mesh, CommandContext& context) {
  load_kernels_before_the_first_step(mesh);
  const ControlPlane& control = *context.job.control;
  const ComputePlace place{select_device(parse_device_choice(choice), control.local_rank()),
                           compute_threads(control, context.environment)};
  set_compute_threads(place.threads);
  return place;
}

}  // namespace hearth
