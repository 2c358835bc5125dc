// hearth distill cache TEACHER --data DIR --output CACHE: what a teacher thinks of every token of a dataset,
// kept on disk (data/teacher_cache.h). Replicas take shards in turn; a shard that is there already is left
// alone, so a second call adds what is missing and goes on after a kill.
#include <ATen/ops/zeros.h>
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstring>
#include <iostream>
#include <memory>
#include <sstream>

#include "data/dataset.h"
#include "data/teacher_cache.h"
#include "launch/command.h"
#include "launch/commands/commands.h"
#include "launch/commands/experiment.h"
#include "launch/commands/model_options.h"
#include "trainer/loaded_model.h"

namespace hearth {
namespace {

struct CacheOptions {
  ModelOptions model;
  std::string data, output;
  int64_t top_k = 64, tokens_per_batch = 4096;
  double temperature = 1.0;
};

template <class T>
void append(std::vector<T>& to, const at::Tensor& rows) {
  const at::Tensor host = rows.to(at::kCPU).contiguous();
  const T* data = host.const_data_ptr<T>();
  to.insert(to.end(), data, data + host.numel());
}

// Asks about whole documents of one shard, as many at once as fit, padded behind (causal attention never sees
// the pad). A document longer than the teacher's context is asked about in windows of that length.
class ShardTeacher {
 public:
  ShardTeacher(InferenceModel& model, const CacheOptions& options, const TeacherCacheInfo& info,
               const std::function<void(const TeacherRows&)>& done)
      : model_(model), options_(options), info_(info), done_(done) {}

  void add(std::span<const int32_t> document) {
    const int64_t context = model_.config().max_position_embeddings;
    for (size_t begin = 0; begin < document.size(); begin += static_cast<size_t>(context)) {
      const auto window =
          document.subspan(begin, std::min(static_cast<size_t>(context), document.size() - begin));
      const auto longest = std::max(longest_, static_cast<int64_t>(window.size()));
      if (!windows_.empty() &&
          longest * (static_cast<int64_t>(windows_.size()) + 1) > options_.tokens_per_batch)
        flush();
      longest_ = std::max(longest_, static_cast<int64_t>(window.size()));
      windows_.emplace_back(window.begin(), window.end());
    }
  }

  void flush() {
    if (windows_.empty()) return;
    const auto batch = static_cast<int64_t>(windows_.size());
    at::Tensor ids = at::zeros({batch, longest_}, at::kLong);
    for (int64_t b = 0; b < batch; ++b)
      std::copy(windows_[static_cast<size_t>(b)].begin(), windows_[static_cast<size_t>(b)].end(),
                ids.data_ptr<int64_t>() + b * longest_);
    ModelInput input;
    input.ids_N = ids.view({-1}).to(model_.device());
    input.layout.batch = batch;
    input.layout.sequence = longest_;
    const TopLogprobs top = model_.top_logprobs(input, info_.top_k, info_.temperature, info_.vocab_size);
    TeacherRows rows;
    for (int64_t b = 0; b < batch; ++b) {
      const auto length = static_cast<int64_t>(windows_[static_cast<size_t>(b)].size());
      append(rows.ids, top.ids_NK.narrow(0, b * longest_, length));
      append(rows.logprobs, top.logprobs_NK.narrow(0, b * longest_, length));
      append(rows.tail_mass, top.tail_mass_N.narrow(0, b * longest_, length));
    }
    done_(rows);
    windows_.clear();
    longest_ = 0;
  }

 private:
  InferenceModel& model_;
  const CacheOptions& options_;
  const TeacherCacheInfo& info_;
  const std::function<void(const TeacherRows&)>& done_;
  std::vector<std::vector<int32_t>> windows_;
  int64_t longest_ = 0;
};

// What the folder holds already. Throws where it is of something else.
std::vector<TeacherCacheShard> known_shards(CommandContext& context, const CacheOptions& options,
                                            const TeacherCacheInfo& info) {
  if (!context.fs.exists(options.output + "/cache.json")) return {};
  const auto cache = TeacherCache::open(context.fs, options.output);
  const TeacherCacheInfo& have = cache->info();
  HEARTH_CHECK(have == info, Usage,
               "{} was made by {} with top_k {} at temperature {}, not by {} with top_k {} at temperature "
               "{}: choose another "
               "--output",
               options.output, have.teacher, have.top_k, have.temperature, info.teacher, info.top_k,
               info.temperature);
  return cache->shards();
}

void run_cache(CacheOptions& options, CommandContext& context) {
  HEARTH_REQUIRE(options.temperature > 0, "--temperature must be > 0, got {}", options.temperature);
  ControlPlane& control = *context.job.control;
  Log log({.rank = control.rank(), .world_size = control.world_size()});
  const auto dataset = Dataset::open(context.fs, options.data);
  ModelBundle bundle = open_model(context.fs, control, log, options.model.model);
  HEARTH_CHECK(bundle.tokenizer != nullptr, BadInput, "{} carries no tokenizer to compare with that of {}",
               bundle.origin, options.data);
  require_same_tokens(*bundle.tokenizer, bundle.origin, *dataset, context.fs);
  const int64_t vocab = std::min(bundle.config.vocab_size, bundle.tokenizer->vocab_size());
  const TeacherCacheInfo info{.teacher = bundle.origin,
                              .tokenizer_digest = dataset->tokenizer_digest(),
                              .vocab_size = vocab,
                              .top_k = std::min(options.top_k, vocab),
                              .temperature = options.temperature};
  if (control.rank() == 0) context.fs.create_directories(options.output);
  control.barrier("distill.output");
  std::vector<TeacherCacheShard> shards = known_shards(context, options, info);
  const ParallelConfig layout = layout_to_answer(options.model.overrides, answering_layout({}), control, log);
  const Mesh mesh = Mesh::from_config(layout, control.world_size());
  const at::Device device = take_device(options.model.device, mesh, context).device;
  share_device(context, device, log);
  const LoadedModel model =
      load_model(std::move(bundle), options.model.parsed_dtype(), device, context.job, layout);
  int64_t made = 0;
  for (int64_t first = 0; first < dataset->num_shards(); first += model.num_replicas()) {
    const int64_t index = first + model.replica();
    std::string entry;
    if (index < dataset->num_shards()) {
      const Shard& shard = dataset->shard(index);
      const auto is_known = [&](const TeacherCacheShard& s) { return s.shard_digest == shard.info().digest; };
      if (std::none_of(shards.begin(), shards.end(), is_known)) {
        std::unique_ptr<TeacherCacheWriter> writer;
        if (model.speaks_for_replica())
          writer = std::make_unique<TeacherCacheWriter>(context.fs, options.output, info, shard.info().digest,
                                                        shard.num_tokens());
        const std::function<void(const TeacherRows&)> done = [&](const TeacherRows& rows) {
          if (writer) writer->append(rows);
        };
        ShardTeacher teacher(*model.inference, options, info, done);
        for (int64_t d = 0; d < shard.num_documents(); ++d) {
          const auto [begin, end] = shard.document_range(d);
          std::vector<int32_t> tokens(static_cast<size_t>(end - begin));
          shard.read_tokens(begin, tokens);
          teacher.add(tokens);
          if (model.speaks_for_replica() && (d + 1) % 1000 == 0)
            fmt::print(stderr, "distill: {}: {} of {} documents\n", shard.info().file, d + 1,
                       shard.num_documents());
        }
        teacher.flush();
        if (writer) {
          const TeacherCacheShard s = writer->finish();
          entry = fmt::format("{} {} {} {} {}", s.shard_digest, s.file, s.num_tokens, s.size_bytes, s.digest);
        }
      }
    }
    // Every rank learns what the others finished; rank 0 writes it down before more is begun.
    for (const std::string& text : control.all_gather(entry, "distill.shard")) {
      if (text.empty()) continue;
      TeacherCacheShard s;
      std::istringstream(text) >> s.shard_digest >> s.file >> s.num_tokens >> s.size_bytes >> s.digest;
      shards.push_back(std::move(s));
      ++made;
    }
    if (control.rank() == 0) write_teacher_cache_manifest(context.fs, options.output, info, shards);
  }
  if (control.rank() != 0) return;
  int64_t bytes = 0;
  for (const auto& shard : shards) bytes += shard.size_bytes;
  fmt::print("{} of {} shards made, {:.2f} GiB in {}: {} log-probabilities a token at temperature {}\n", made,
             dataset->num_shards(), static_cast<double>(bytes) / (1 << 30), options.output, info.top_k,
             info.temperature);
}

}  // namespace

void add_distill_command(CLI::App& parent, CommandContext& context) {
  CLI::App* distill = parent.add_subcommand("distill", "Prepare a distillation");
  distill->require_subcommand(1);
  auto options = std::make_shared<CacheOptions>();
  CLI::App* cache = distill->add_subcommand(
      "cache", "Ask a teacher about every token of a dataset once, for objective.teacher_cache");
  options->model.add_to(*cache);
  cache->add_option("--data", options->data, "Folder that `hearth data prepare` wrote")->required();
  cache->add_option("--output", options->output, "Folder of the cache; a second call adds new shards")
      ->required();
  cache
      ->add_option("--top-k", options->top_k,
                   "Log-probabilities kept of a token (8 bytes each); the rest is one number")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  cache
      ->add_option("--temperature", options->temperature,
                   "Divides the logits: objective.logit_kl_temperature")
      ->capture_default_str();
  cache->add_option("--tokens-per-batch", options->tokens_per_batch, "Tokens that the teacher reads at once")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  cache->callback([options, &context] { run_cache(*options, context); });
}

}  // namespace hearth
