// hearth watch CONFIG: inbox -> shards -> fine-tuning -> evaluation -> serving, for ever (launch/watch/).
// hearth watch lineage WORKSPACE [RELEASE|FILE]: which source files are in what, from the journal.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <memory>

#include "base/clock.h"
#include "base/fault_plan.h"
#include "data/tokenizer/tokenizer.h"
#include "launch/command.h"
#include "launch/commands/commands.h"
#include "launch/config_parser.h"
#include "launch/signals.h"
#include "launch/watch/lineage.h"
#include "launch/watch/watch_loop.h"
#include "trainer/checkpoint/run_lock.h"

namespace hearth {
namespace {

struct WatchOptions {
  std::string config, program;
  bool once = false, dry_run = false, take_over = false, give_up_run = false;
};

struct LineageOptions {
  std::string workspace, subject;
  bool json = false;
};

// What can be known before the first step is asked before it: a mistake must not show after days.
void check_start(const WatchConfig& config, FileSystem& fs) {
  HEARTH_CHECK(fs.is_directory(config.inbox), Config, "watch.inbox: there is no folder '{}'", config.inbox);
  Tokenizer::load(fs, config.tokenizer);
  std::vector<std::string> overrides = data_overrides(config, "0001", config.base_model);
  for (auto& value : set_values(config.train_arguments)) overrides.push_back(std::move(value));
  const ExperimentConfig experiment = load_experiment(fs, config.experiment, overrides).config;
  HEARTH_CHECK(
      experiment.objective.kind != "dpo", Config,
      "{}: objective.kind is dpo, but a candidate here is judged by its loss on held-out documents, which "
      "says nothing of preferences; train with `hearth train` and publish by hand",
      config.experiment);
}

void run_watch(const WatchOptions& options, CommandContext& context) {
  HEARTH_REQUIRE(!options.config.empty(), "hearth watch needs a CONFIG");
  HEARTH_REQUIRE(context.job.control->world_size() == 1,
                 "`hearth watch` is one process; what its steps are started with is watch.launcher");
  const WatchConfig config = load_watch_config(context.fs, options.config);
  check_start(config, context.fs);
  const auto clock = make_system_clock();
  if (options.dry_run) {
    for (const auto& line : describe_next(context.fs, *clock, config)) fmt::print("{}\n", line);
    return;
  }
  Log log;
  catch_interrupts();
  const auto lock =
      RunLock::acquire(context.fs, log, config.workspace, this_process(context.environment.slurm_job_id),
                       options.take_over ? TakeOver::Force : TakeOver::DeadOnly);
  context.fs.create_directories(config.workspace + "/log");
  log.open_file(config.workspace + "/log/watch.log");
  FaultInjector faults(parse_fault_plan(context.environment.fault_plan), 0);
  const auto stop_requested = [] { return stop_signal().has_value(); };
  const auto children = make_process_runner(stop_requested);
  WatchLoop loop({.config = config,
                  .fs = context.fs,
                  .clock = *clock,
                  .children = *children,
                  .log = log,
                  .program = options.program.empty()
                                 ? std::filesystem::read_symlink("/proc/self/exe").string()
                                 : options.program,
                  .at_point = [&faults](std::string_view point) { faults.hit(point); },
                  .stop_requested = stop_requested,
                  .check_lock = [&lock] { lock->check(); }});
  if (options.give_up_run) loop.give_up_run();
  loop.run(options.once ? WatchMode::UntilIdle : WatchMode::Forever);
  log.info("event=watch.idle serving={} waiting={}", loop.state().serving, loop.state().waiting.size());
}

nlohmann::ordered_json to_json(const LineageFile& file) {
  return {{"digest", file.digest},     {"names", file.names},        {"bytes", file.bytes},
          {"accepted", file.accepted}, {"status", file.status},      {"trained", file.trained},
          {"releases", file.releases}, {"rejected", file.candidates}};
}

nlohmann::ordered_json to_json(const LineageIndex& index, const LineageRelease& release) {
  const auto files = [&](const std::vector<std::string>& digests) {
    auto out = nlohmann::ordered_json::array();
    for (const auto& digest : digests) {
      const auto found = index.files.find(digest);
      out.push_back(
          {{"digest", digest},
           {"names", found == index.files.end() ? std::vector<std::string>{} : found->second.names}});
    }
    return out;
  };
  return {{"release", release.name},
          {"parent", release.parent},
          {"time", release.time},
          {"promoted", release.promoted},
          {"serving", release.promoted && release.name == index.serving},
          {"files", files(release.files)},
          {"inherited", files(release.inherited)},
          {"record", release.event}};
}

void print_file(const LineageFile& file) {
  fmt::print("file          {}\n", file.digest);
  for (const auto& name : file.names) fmt::print("name          {}\n", name);
  fmt::print("bytes         {}\naccepted      {}\nstatus        {}\n", file.bytes, file.accepted,
             file.status);
  for (const auto& name : file.releases)
    fmt::print("release       {}  {}\n", name,
               std::count(file.trained.begin(), file.trained.end(), name) > 0 ? "trained on it"
                                                                              : "descends from one that did");
  for (const auto& name : file.candidates)
    fmt::print("rejected      {}  trained on it, never served\n", name);
}

void print_release(const LineageIndex& index, const LineageRelease& release) {
  fmt::print("release       {}{}\nparent        {}\ntime          {}\n", release.name,
             !release.promoted               ? "  (rejected candidate, never served)"
             : release.name == index.serving ? "  (serving)"
                                             : "",
             release.parent.empty() ? "none" : release.parent, release.time);
  if (release.event.contains("reason"))
    fmt::print("reason        {}\n", release.event["reason"].get<std::string>());
  const auto list = [&](const char* how, const std::vector<std::string>& digests) {
    for (const auto& digest : digests) {
      const auto found = index.files.find(digest);
      fmt::print(
          "{:<14}{}  {}\n", how, digest,
          found == index.files.end() || found->second.names.empty() ? "" : found->second.names.front());
    }
  };
  list("file", release.files);
  list("inherited", release.inherited);
}

void print_overview(const LineageIndex& index) {
  for (const auto& [name, release] : index.releases)
    fmt::print("{}  {:<9}{}  parent {}  {} files, {} inherited\n", name,
               !release.promoted       ? "rejected"
               : name == index.serving ? "serving"
                                       : "release",
               release.time, release.parent.empty() ? "none" : release.parent, release.files.size(),
               release.inherited.size());
  for (const auto& [digest, file] : index.files)
    if (file.releases.empty())
      fmt::print("{}  {}  {}\n", digest, file.names.empty() ? "" : file.names.front(),
                 file.status.substr(0, file.status.find('\n')));
}

// By name, by digest or by its first 8 digits.
std::vector<const LineageFile*> find_files(const LineageIndex& index, const std::string& subject) {
  std::vector<const LineageFile*> found;
  for (const auto& [digest, file] : index.files)
    if (std::count(file.names.begin(), file.names.end(), subject) > 0 ||
        (subject.size() >= 8 && digest.starts_with(subject)))
      found.push_back(&file);
  return found;
}

void run_lineage(const LineageOptions& options, CommandContext& context) {
  const std::string path = options.workspace + "/lineage.jsonl";
  HEARTH_CHECK(context.fs.exists(path), BadInput, "{}: no journal there; WORKSPACE is watch.workspace", path);
  const LineageIndex index = index_lineage(read_lineage(context.fs, path));
  nlohmann::ordered_json json;
  if (options.subject.empty()) {
    if (!options.json) return print_overview(index);
    json = {{"releases", nlohmann::ordered_json::array()}, {"files", nlohmann::ordered_json::array()}};
    for (const auto& [name, release] : index.releases) json["releases"].push_back(to_json(index, release));
    for (const auto& [digest, file] : index.files) json["files"].push_back(to_json(file));
  } else if (const auto release = index.releases.find(options.subject); release != index.releases.end()) {
    if (!options.json) return print_release(index, release->second);
    json = to_json(index, release->second);
  } else {
    const auto files = find_files(index, options.subject);
    HEARTH_CHECK(!files.empty(), BadInput,
                 "{} knows no release and no file '{}' (a name, or 8 digits of a digest)", path,
                 options.subject);
    for (const auto* file : files) options.json ? json.push_back(to_json(*file)) : print_file(*file);
    if (!options.json) return;
  }
  std::cout << json.dump(1) << "\n";
}

}  // namespace

void add_watch_command(CLI::App& parent, CommandContext& context) {
  auto options = std::make_shared<WatchOptions>();
  CLI::App* command = parent.add_subcommand(
      "watch", "Fine-tune on what arrives in a folder, and serve what is no worse; resumes after any kill");
  command->add_option("CONFIG", options->config, "File of the loop (YAML), as configs/watch/example.yaml");
  command->add_flag("--once", options->once, "End when nothing is left to do, instead of waiting for files");
  command->add_flag("--dry-run", options->dry_run, "Print what would be done next, then end");
  command->add_option("--program", options->program,
                      "The hearth that steps are started with (default: this one)");
  command->add_flag("--give-up-run", options->give_up_run,
                    "First reject the run that is under way, whose files are then not used again");
  command->add_flag("--take-over", options->take_over,
                    "Take the workspace from a watcher on another host that is surely dead");
  auto lineage_options = std::make_shared<LineageOptions>();
  CLI::App* lineage = command->add_subcommand(
      "lineage", "Which source files are in a release, and which releases hold a file");
  lineage->add_option("WORKSPACE", lineage_options->workspace, "Folder watch.workspace")->required();
  lineage->add_option("SUBJECT", lineage_options->subject, "A release (0003), a file's name or its digest");
  lineage->add_flag("--json", lineage_options->json, "JSON on standard output");
  lineage->callback([lineage_options, &context] { run_lineage(*lineage_options, context); });
  command->callback([options, lineage, &context] {
    if (!lineage->parsed()) run_watch(*options, context);
  });
}

}  // namespace hearth
