// Steps of a run: shards, training, candidate, evaluation.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/error.h"
#include "base/strict_json.h"
#include "data/dataset.h"
#include "data/shard.h"
#include "launch/config_parser.h"
#include "launch/watch/trigger.h"
#include "launch/watch/watch_loop.h"
#include "trainer/checkpoint/find_checkpoint.h"

namespace hearth {
namespace {

constexpr int kBadInput = 4, kNumeric = 6;  // exit codes of error.h
constexpr int64_t kMaxOutputBytes = 1 << 20;

LineageEvent describe(const Dataset& dataset) {
  LineageEvent shards = LineageEvent::array();
  for (const auto& shard : dataset.manifest().shards)
    shards.push_back({{"file", shard.file}, {"digest", shard.digest}});
  return {{"path", dataset.directory()},
          {"digest", dataset.digest()},
          {"documents", dataset.num_documents()},
          {"tokens", dataset.num_tokens()},
          {"shards", shards}};
}

// Samples of one pass, as data/sampler.h cuts them.
int64_t num_windows(const Dataset& dataset, int64_t seq_length) {
  int64_t windows = 0;
  for (int64_t i = 0; i < dataset.num_shards(); ++i)
    windows += std::max<int64_t>(0, (dataset.shard(i).num_tokens() - 1) / seq_length);
  return windows;
}

std::string quoted(const std::string& text) {
  return canonical_text(text);  // JSON, which YAML is
}

}  // namespace

std::vector<std::string> data_overrides(const WatchConfig& config, const std::string& run,
                                        const std::string& init_from) {
  const std::string data = config.workspace + "/data/" + run;
  std::string train = fmt::format("[{{path: {}, weight: {}}}", quoted(data + "/train"),
                                  canonical_text(1 - config.replay_share));
  double weights = 0;
  for (const auto& entry : config.replay) weights += entry.weight;
  for (const auto& entry : config.replay)
    train += fmt::format(", {{path: {}, weight: {}}}", quoted(entry.path),
                         canonical_text(config.replay_share * entry.weight / weights));
  return {"model.init_from=" + quoted(init_from), "data.train=" + train + "]",
          fmt::format("data.validation=[{{path: {}}}]", quoted(data + "/validation")),
          "checkpoint.save=" + quoted(config.workspace + "/runs/" + run)};
}

void WatchLoop::ingest() {
  const WatchRun& run = *state().run;
  if (run.files.empty()) return return_batch("no file of it could be read");
  std::set<std::string> listed;
  for (const auto& file : run.files) listed.insert(file.stored);
  for (const auto& name : c_.fs.list(batch_folder()))  // copies that no commit knows
    if (!listed.contains(name)) c_.fs.remove(batch_folder() + "/" + name);
  Step step{.name = "prepare",
            .words = {"data", "prepare", batch_folder(), "--tokenizer", c_.config.tokenizer, "--output",
                      path("data", run.name), "--validation-fraction",
                      fmt::format("{}", c_.config.validation_fraction)},
            .expected = {kBadInput}};
  step.words.insert(step.words.end(), c_.config.prepare_arguments.begin(), c_.config.prepare_arguments.end());
  const ChildResult result = run_step(step);
  if (result.code == kBadInput) return reject_bad_files(result);
  point("watch.ingest.prepared");
  freeze_training();
}

// Each file alone, not split, into a folder that is thrown away: what fails so is bad by itself. One commit
// per bad file; the ingestion then begins again with the others.
void WatchLoop::reject_bad_files(const ChildResult& failure) {
  const std::string probe = path("tmp", "probe");
  const std::vector<WaitingFile> files = state().run->files;
  for (const auto& file : files) {
    stop_if_asked();
    c_.fs.remove_all(probe);
    Step step{.name = "probe",
              .words = {"data", "prepare", batch_folder() + "/" + file.stored, "--tokenizer",
                        c_.config.tokenizer, "--output", probe},
              .expected = {kBadInput}};
    step.words.insert(step.words.end(), c_.config.prepare_arguments.begin(),
                      c_.config.prepare_arguments.end());
    const ChildResult result = run_step(step);
    c_.fs.remove_all(probe);
    if (result.code == 0) continue;
    const std::string kept = path("rejected", file.digest + "-" + file.name);
    c_.fs.write_atomically(kept + ".reason", result.last_lines + "\n");
    const std::string from = batch_folder() + "/" + file.stored;
    copy_digested(c_.fs, from, c_.fs.stamp(from), kept);  // the original goes with the next ingestion
    c_.fs.sync_directory(c_.config.workspace + "/rejected");
    point("watch.ingest.bad_file");
    WatchState next = state();
    std::erase(next.run->files, file);
    commit(std::move(next), {{{"event", "file_rejected"},
                              {"name", file.name},
                              {"digest", file.digest},
                              {"run", state().run->name},
                              {"reason", result.last_lines}}});
  }
  if (state().run->files.size() != files.size()) return;  // again with the others
  // Good files, but too few documents for both parts: the one reason that data/prepare.cpp knows for this.
  HEARTH_CHECK(failure.last_lines.find("part would be empty") != std::string::npos, BadInput,
               "the files of run {} can be prepared one by one, but not together:\n{}", state().run->name,
               failure.last_lines);
  return_batch("too few documents to hold some out");
}

// The files wait on, for more to come.
void WatchLoop::return_batch(const std::string& reason) {
  remove_folder(c_.fs, path("data", state().run->name));
  WatchState next = state();
  std::vector<std::string> digests;
  int64_t bytes = 0;
  for (const auto& file : next.run->files) {
    digests.push_back(file.digest);
    bytes += file.bytes;
  }
  next.waiting = next.run->files;
  next.too_small_bytes = bytes;
  next.run.reset();
  next.phase = WatchPhase::Collect;
  commit(std::move(next),
         {{{"event", "batch_returned"}, {"run", state().run->name}, {"reason", reason}, {"files", digests}}});
}

// From here on data, weights and length of the training are fixed.
void WatchLoop::freeze_training() {
  const WatchRun& run = *state().run;
  const auto train = Dataset::open(c_.fs, path("data", run.name) + "/train");
  const auto validation = Dataset::open(c_.fs, path("data", run.name) + "/validation");
  std::set<std::string> wanted, got;
  for (const auto& file : run.files) wanted.insert(file.digest);
  for (const auto& source : train->manifest().sources) got.insert(source.digest);
  HEARTH_CHECK(
      wanted == got, Corrupt,
      "{}: was made from {} files, not from the {} of run {}; nothing was trained. Remove the folder and "
      "start again",
      train->directory(), got.size(), wanted.size(), run.name);
  WatchState next = state();
  next.run->overrides = data_overrides(c_.config, run.name, path("releases", run.parent));
  std::vector<std::string> all = next.run->overrides;
  for (auto& value : set_values(c_.config.train_arguments)) all.push_back(std::move(value));
  const ExperimentConfig experiment = load_experiment(c_.fs, c_.config.experiment, all).config;
  const int64_t windows = num_windows(*train, experiment.data.seq_length);
  if (windows == 0)
    return return_batch(fmt::format("{} tokens, fewer than one sample of {}", train->num_tokens(),
                                    experiment.data.seq_length));
  if (c_.config.epochs > 0) {
    // Old data comes from `replay` here, from objective.incremental of the experiment, or from both.
    const IncrementalConfig& incremental = experiment.objective.incremental;
    const double new_share =
        (1 - c_.config.replay_share) * (incremental.replay.empty() ? 1 : 1 - incremental.replay_share);
    const double samples = c_.config.epochs * static_cast<double>(windows) / new_share;
    const auto steps = std::ceil(samples / static_cast<double>(experiment.training.global_batch_size));
    next.run->overrides.push_back(
        fmt::format("training.train_iters={}", std::max<int64_t>(1, static_cast<int64_t>(steps))));
  }
  LineageEvent datasets = LineageEvent::array({describe(*train), describe(*validation)});
  LineageEvent replay = LineageEvent::array();
  for (const auto& entry : c_.config.replay) {
    const auto dataset = Dataset::open(c_.fs, entry.path);
    replay.push_back({{"path", entry.path}, {"digest", dataset->digest()}, {"weight", entry.weight}});
  }
  next.phase = WatchPhase::Train;
  next.too_small_bytes = 0;
  const LineageEvent event{{"event", "ingested"},
                           {"run", run.name},
                           {"datasets", datasets},
                           {"replay", replay},
                           {"overrides", next.run->overrides}};
  commit(std::move(next), {event});
}

void WatchLoop::train() {
  const WatchRun& run = *state().run;
  Step step{
      .name = "train", .words = {"train", c_.config.experiment}, .expected = {kNumeric}, .launched = true};
  step.words.insert(step.words.end(), c_.config.train_arguments.begin(), c_.config.train_arguments.end());
  for (const auto& value : run.overrides) {
    step.words.push_back("--set");
    step.words.push_back(value);
  }
  const ChildResult result = run_step(step);
  point("watch.train.ended");
  if (result.code == kNumeric) return reject("the training stopped: " + result.last_lines);
  const auto checkpoints = list_checkpoints(c_.fs, path("runs", run.name));
  HEARTH_CHECK(!checkpoints.empty(), Corrupt, "run {} ended well but left no checkpoint in {}", run.name,
               path("runs", run.name));
  WatchState next = state();
  next.phase = WatchPhase::Export;
  next.run->checkpoint = checkpoints.front();
  next.run->checkpoint_digest = file_digest(*c_.fs.open(checkpoints.front() + "/manifest.json"));
  const LineageEvent event{{"event", "trained"},
                           {"run", run.name},
                           {"checkpoint", next.run->checkpoint},
                           {"manifest_digest", next.run->checkpoint_digest}};
  commit(std::move(next), {event});
}

// Before the evaluation: what is judged is what will be served, rounding to its dtype included.
void WatchLoop::export_candidate() {
  const WatchRun& run = *state().run;
  const std::string output = path("candidates", run.name);
  if (!c_.fs.exists(output)) {  // `hearth export` publishes by a rename: what is there is whole
    Step step{.name = "export",
              .words = {"export", run.checkpoint, "--output", output},
              .expected = {kNumeric},
              .launched = true};
    step.words.insert(step.words.end(), c_.config.export_arguments.begin(), c_.config.export_arguments.end());
    const ChildResult result = run_step(step);
    point("watch.export.ended");
    if (result.code == kNumeric) return reject("the export refused the weights: " + result.last_lines);
  }
  WatchState next = state();
  next.phase = WatchPhase::Evaluate;
  next.run->exported = digest_folder(c_.fs, output);
  LineageEvent files = LineageEvent::array();
  for (const auto& file : next.run->exported) files.push_back({{"name", file.name}, {"digest", file.digest}});
  const LineageEvent event{
      {"event", "exported"}, {"run", run.name}, {"path", output}, {"release_files", files}};
  commit(std::move(next), {event});
}

double WatchLoop::evaluate_one(const std::string& model_path, const std::string& dataset, int64_t& tokens) {
  Step step{.name = "eval",
            .words = {"eval", model_path, "--data", dataset, "--json"},
            .expected = {kNumeric},
            .launched = true};
  step.words.insert(step.words.end(), c_.config.eval_arguments.begin(), c_.config.eval_arguments.end());
  const ChildResult result = run_step(step);
  point("watch.evaluate.ended");
  if (result.code == kNumeric) return std::numeric_limits<double>::infinity();
  const std::string file = output_of("eval");
  std::string text = c_.fs.read_text(file, kMaxOutputBytes);
  while (text.ends_with('\n')) text.pop_back();
  const size_t line = text.rfind('\n');
  const auto json = parse_json_strict(line == std::string::npos ? text : text.substr(line + 1), file);
  try {
    tokens = json.at("num_tokens").get<int64_t>();
    return json.at("loss").get<double>();
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorKind::Internal, "{}: `hearth eval --json` printed something else ({})", file, error.what());
  }
}

// One commit per number; what was measured before a kill is not measured again.
void WatchLoop::evaluate() {
  const std::string held_out = path("data", state().run->name) + "/validation";
  std::vector<std::pair<std::string, std::string>> wanted{{state().run->name, held_out},
                                                          {state().run->parent, held_out}};
  for (const auto& dataset : c_.config.old_validation) {
    wanted.emplace_back(state().run->name, dataset);
    wanted.emplace_back(state().run->parent, dataset);
  }
  for (const auto& [model, dataset] : wanted) {
    const WatchRun& run = *state().run;
    const std::string digest = Dataset::open(c_.fs, dataset)->digest();
    const auto same = [&, model = model, dataset = dataset](const Score& score) {
      return score.model == model && score.dataset == dataset && score.dataset_digest == digest;
    };
    const auto has = [&](const std::vector<Score>& scores) {
      return std::any_of(scores.begin(), scores.end(), same);
    };
    if (has(run.scores) || has(state().scores)) continue;
    const bool is_candidate = model == run.name;
    Score score{.model = model, .dataset = dataset, .dataset_digest = digest};
    score.loss = evaluate_one(path(is_candidate ? "candidates" : "releases", model), dataset, score.tokens);
    if (!std::isfinite(score.loss))
      return is_candidate
                 ? reject(fmt::format("its loss on {} is not finite", dataset))
                 : fail(ErrorKind::Numeric, "the loss of release {} on {} is not finite", model, dataset);
    WatchState next = state();
    // A dataset that grew meanwhile: all of its numbers are taken again.
    const bool grew = std::erase_if(next.run->scores, [&](const Score& old) {
                        return old.dataset == score.dataset && old.dataset_digest != score.dataset_digest;
                      }) > 0;
    next.run->scores.push_back(score);
    const LineageEvent event{{"event", "evaluated"},  {"run", run.name},          {"model", model},
                             {"dataset", dataset},    {"dataset_digest", digest}, {"loss", score.loss},
                             {"tokens", score.tokens}};
    commit(std::move(next), {event});
    if (grew) return;  // the loop comes back to this step
  }
  const Verdict verdict = judge(c_.config, *state().run, held_out, state().scores);
  point("watch.judged");
  if (!verdict.promote) return reject(verdict.reason);
  WatchState next = state();
  next.phase = WatchPhase::Promote;
  commit(std::move(next),
         {{{"event", "accepted_candidate"}, {"run", state().run->name}, {"reason", verdict.reason}}});
}

}  // namespace hearth
