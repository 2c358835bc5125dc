// hearth report --trace FILE|DIR...: reads the traces that a run with profile.enabled wrote (RUN/trace) and
// prints, per kind of communication, the share of its time that compute on other streams covers; --merged
// FILE writes one trace of all ranks.
#include <CLI/CLI.hpp>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "launch/command.h"
#include "launch/commands/commands.h"
#include "trainer/trace_events.h"
#include "trainer/trace_overlap.h"

namespace hearth {
namespace {

using nlohmann::ordered_json;

struct Arguments {
  std::vector<std::string> traces;
  std::string merged;
  bool json = false;
};

struct RankOverlap {
  RankTrace trace;
  std::vector<KindOverlap> kinds;
};

std::vector<std::string> trace_files(FileSystem& fs, const std::vector<std::string>& paths) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    HEARTH_CHECK(fs.exists(path), BadInput,
                 "{} does not exist: a run writes RUN/trace when profile.enabled is true", path);
    if (!fs.is_directory(path)) {
      files.push_back(path);
      continue;
    }
    for (const std::string& name : fs.list(path))
      if (name.rfind("rank_", 0) == 0 && name.size() == std::string("rank_0000.json").size())
        files.push_back(path + "/" + name);
  }
  HEARTH_CHECK(!files.empty(), BadInput, "{} holds no rank_NNNN.json", paths.front());
  return files;
}

nlohmann::json parse_trace(FileSystem& fs, const std::string& file) {
  auto trace = nlohmann::json::parse(fs.read_text(file), nullptr, /*allow_exceptions=*/false);
  HEARTH_CHECK(!trace.is_discarded(), BadInput,
               "{} is not JSON: was the run stopped while it wrote the trace?", file);
  return trace;
}

double per_step_ms(int64_t ns, int64_t steps) {
  return static_cast<double>(ns) / 1e6 / static_cast<double>(steps);
}

ordered_json kind_json(const KindOverlap& row, int64_t steps) {
  return {{"kind", row.kind},
          {"calls", row.calls},
          {"time_ms", static_cast<double>(row.total_ns) / 1e6},
          {"covered_ms", static_cast<double>(row.covered_ns) / 1e6},
          {"share", row.share()},
          {"exposed_ms_per_step", per_step_ms(row.exposed_ns, steps)}};
}

// Sums over the ranks; steps of all ranks together, so that figures per step are means over ranks and steps.
std::pair<std::vector<KindOverlap>, int64_t> sum_over_ranks(const std::vector<RankOverlap>& ranks) {
  std::map<std::string, KindOverlap> sums;
  int64_t steps = 0;
  for (const RankOverlap& rank : ranks) {
    steps += rank.trace.steps;
    for (const KindOverlap& row : rank.kinds) {
      KindOverlap& sum = sums[row.kind];
      sum.kind = row.kind;
      sum.calls += row.calls;
      sum.total_ns += row.total_ns;
      sum.covered_ns += row.covered_ns;
      sum.exposed_ns += row.exposed_ns;
    }
  }
  std::vector<KindOverlap> rows;
  for (const auto& [kind, row] : sums)
    if (kind != "all") rows.push_back(row);
  if (!sums.empty()) rows.push_back(sums["all"]);
  return {rows, steps};
}

void print_json(const std::vector<RankOverlap>& ranks) {
  ordered_json list = ordered_json::array(), kinds = ordered_json::array();
  for (const RankOverlap& rank : ranks) {
    ordered_json rows = ordered_json::array();
    for (const KindOverlap& row : rank.kinds) rows.push_back(kind_json(row, rank.trace.steps));
    list.push_back({{"rank", rank.trace.rank},
                    {"place", rank.trace.place},
                    {"steps", rank.trace.steps},
                    {"kinds", rows}});
  }
  const auto [sums, steps] = sum_over_ranks(ranks);
  for (const KindOverlap& row : sums) kinds.push_back(kind_json(row, steps));
  std::cout << ordered_json{{"ranks", list}, {"kinds", kinds}}.dump(1) << "\n";
}

void print_table(const std::vector<RankOverlap>& ranks) {
  const auto [rows, steps] = sum_over_ranks(ranks);
  std::cout << fmt::format("communication of {} ranks, {} traced steps in all: mean of a step of a rank\n",
                           ranks.size(), steps);
  std::cout << fmt::format("{:<22} {:>8} {:>11} {:>11} {:>8} {:>11}\n", "kind", "calls", "time ms",
                           "covered ms", "covered", "exposed ms");
  for (const KindOverlap& row : rows)
    std::cout << fmt::format("{:<22} {:>8.1f} {:>11.3f} {:>11.3f} {:>7.1f}% {:>11.3f}\n", row.kind,
                             static_cast<double>(row.calls) / static_cast<double>(steps),
                             per_step_ms(row.total_ns, steps), per_step_ms(row.covered_ns, steps),
                             100 * row.share(), per_step_ms(row.exposed_ns, steps));
  if (rows.empty()) std::cout << "no call between ranks\n";
}

void run_report(const Arguments& arguments, CommandContext& context) {
  if (context.job.control->rank() != 0) return;
  std::vector<RankOverlap> ranks;
  std::vector<nlohmann::json> traces;
  for (const std::string& file : trace_files(context.fs, arguments.traces)) {
    auto trace = parse_trace(context.fs, file);
    RankTrace rank = read_rank_trace(trace, file);
    auto kinds = measure_overlap(rank);
    ranks.push_back({std::move(rank), std::move(kinds)});
    if (!arguments.merged.empty()) traces.push_back(std::move(trace));
  }
  if (!arguments.merged.empty())
    context.fs.write_atomically(arguments.merged, merge_traces(std::move(traces)).dump());
  arguments.json ? print_json(ranks) : print_table(ranks);
}

}  // namespace

void add_report_command(CLI::App& parent, CommandContext& context) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = parent.add_subcommand(
      "report", "How much of a traced run's communication hides behind compute, per kind");
  command->add_option("--trace", arguments->traces, "Trace files of ranks, or the folder RUN/trace")
      ->required();
  command->add_option("--merged", arguments->merged, "Also write one trace of all ranks to this file");
  command->add_flag("--json", arguments->json, "Print one JSON object, with the figures of every rank");
  command->callback([arguments, &context] { run_report(*arguments, context); });
}

}  // namespace hearth
