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
    auto dataset = Dataset::open(fs, path);
    dataset->require_seq_length(config.seq_length);
    return dataset;
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
