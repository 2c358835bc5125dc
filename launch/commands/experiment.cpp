#include "launch/commands/experiment.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>
#include <thread>

#include "base/error.h"
#include "kernels/gemm_op.h"
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
void load_kernels_before_the_first_step(const std::vector<MeshPart>& parts) {
  const bool posts_ahead = std::any_of(parts.begin(), parts.end(),
                                       [](const MeshPart& part) { return part.mesh.size(MeshAxis::Pp) > 1; });
  if (posts_ahead) ::setenv("CUDA_MODULE_LOADING", "EAGER", /*overwrite=*/0);
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

ExperimentData open_data(FileSystem& fs, const ExperimentConfig& experiment, MissingData missing) {
  const DataConfig& config = experiment.data;
  const IncrementalConfig& incremental = experiment.objective.incremental;
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
  const auto total = [](const std::vector<DatasetEntry>& entries) {
    double sum = 0;
    for (const DatasetEntry& entry : entries) sum += entry.weight;
    return sum;
  };
  const auto open_train = [&](const std::vector<DatasetEntry>& entries, double factor) {
    for (const DatasetEntry& entry : entries) {
      auto dataset = open(entry.path);
      if (dataset == nullptr) continue;
      data.digest += (data.digest.empty() ? "" : ",") + dataset->digest();
      data.text += fmt::format("{}{}  {} shards, {} tokens", data.text.empty() ? "" : "; ", entry.path,
                               dataset->num_shards(), dataset->num_tokens());
      data.train.push_back({std::move(dataset), entry.weight * factor});
    }
  };
  open_train(config.train, 1.0);
  if (!incremental.replay.empty()) {
    const double share = incremental.replay_share;
    open_train(incremental.replay, share / (1.0 - share) * total(config.train) / total(incremental.replay));
  }
  for (const DatasetEntry& entry : config.validation)
    if (auto dataset = open(entry.path)) data.validation.push_back(std::move(dataset));
  for (const DatasetEntry& entry : incremental.old_validation)
    if (auto dataset = open(entry.path)) data.old_validation.push_back(std::move(dataset));
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
  for (const auto& dataset : data.old_validation) check(*dataset);
}

void require_data_of_objective(const ExperimentConfig& config, const ExperimentData& data) {
  const std::string& objective = config.objective.kind;
  bool conversations = false;
  for (const auto& entry : data.train) {
    const std::string kind = entry.dataset->kind();
    conversations = conversations || kind == "sft";
    HEARTH_CHECK((kind == "preference") == (objective == "dpo"), BadInput,
                 "{} holds {}, and objective.kind is {}: {}", entry.dataset->directory(),
                 kind == "preference" ? "preference pairs" : "no preference pairs", objective,
                 objective == "dpo" ? "prepare pairs with `hearth data prepare --format preference`"
                                    : "pairs are for objective.kind dpo");
  }
  HEARTH_CHECK(
      objective != "sft" || conversations, BadInput,
      "objective.kind sft needs conversations, and {} is plain text: prepare them with `hearth data prepare "
      "--format messages` (alpaca, sharegpt, ...), or train text with objective.kind pretrain",
      data.train.front().dataset->directory());
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

void require_same_tokens(const Tokenizer& teacher, const std::string& origin, const Dataset& dataset,
                         FileSystem& fs) {
  if (teacher.digest() == dataset.tokenizer_digest()) return;
  const auto own = Tokenizer::load(fs, dataset.tokenizer_directory());
  const auto different = first_different_token(*own, teacher);
  HEARTH_CHECK(
      !different, BadInput,
      "the teacher {} has another tokenizer than {}: id {} is '{}' there and '{}' in the data. A teacher's "
      "probabilities say something about the student's tokens only where the ids mean the same: choose a "
      "teacher "
      "and a student of one family, or prepare the data with the teacher's tokenizer and train a student on "
      "that",
      origin, dataset.directory(), *different, teacher.id_to_token(*different), own->id_to_token(*different));
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
  require_same_tokens(*teacher->tokenizer, teacher->origin, dataset, context.fs);
  return teacher;
}

std::optional<ModelConfig> teacher_shape(const LoadedConfig& loaded, CommandContext& context, Log& log) {
  const auto& path = loaded.config.objective.teacher;
  const bool elsewhere = loaded.config.objective.teacher_ranks > 0;
  if (!path || elsewhere || !context.fs.exists(*path)) return std::nullopt;
  return open_model(context.fs, *context.job.control, log, *path).config;
}

std::unique_ptr<TeacherCache> open_teacher_cache(const LoadedConfig& loaded, const ExperimentData& data,
                                                 CommandContext& context) {
  const auto& path = loaded.config.objective.teacher_cache;
  if (!path) return nullptr;
  auto cache = TeacherCache::open(context.fs, *path);
  for (const auto& entry : data.train) {
    const Dataset& dataset = *entry.dataset;
    HEARTH_CHECK(cache->info().tokenizer_digest == dataset.tokenizer_digest(), BadInput,
                 "objective.teacher_cache {} was made of data with another tokenizer than {}", *path,
                 dataset.directory());
    for (int64_t shard = 0; shard < dataset.num_shards(); ++shard)
      HEARTH_CHECK(cache->contains(dataset.shard(shard).info().digest), BadInput,
                   "objective.teacher_cache {} has nothing of {}/{}; run `hearth distill cache TEACHER "
                   "--data {} --output "
                   "{}` again, which adds what is missing",
                   *path, dataset.directory(), dataset.shard(shard).info().file, dataset.directory(), *path);
  }
  return cache;
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
  return take_device(choice, std::vector<MeshPart>{{"", mesh}}, context);
}

ComputePlace take_device(const std::string& choice, const std::vector<MeshPart>& parts,
                         CommandContext& context) {
  load_kernels_before_the_first_step(parts);
  const ControlPlane& control = *context.job.control;
  const ComputePlace place{select_device(parse_device_choice(choice), control.local_rank()),
                           compute_threads(control, context.environment)};
  set_compute_threads(place.threads);
  if (place.device.is_cuda() && !context.environment.cache_folder.empty())
    kernels::keep_gemm_plans(std::make_unique<kernels::GemmPlanFile>(
        context.fs, context.environment.cache_folder + "/gemm_plans.txt"));
  return place;
}

}  // namespace hearth
