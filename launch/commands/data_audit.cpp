// hearth data audit RUN|CHECKPOINT: proves from the ledgers in the checkpoints' state.json that no window of
// training data was used twice or left out (data/ledger.h). Trouble is Error{Corrupt}: exit code 5.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "base/strict_json.h"
#include "data/ledger.h"
#include "launch/command.h"
#include "launch/commands/commands.h"

namespace hearth {
namespace {

using nlohmann::json;

// Checkpoint folders, oldest first: the argument itself, or those of a run folder.
std::vector<std::string> checkpoints_of(FileSystem& fs, const std::string& path) {
  HEARTH_CHECK(fs.is_directory(path), Usage, "{}: no such checkpoint or run folder", path);
  if (fs.exists(path + "/state.json")) return {path};
  const std::string folder = fs.is_directory(path + "/checkpoints") ? path + "/checkpoints" : path;
  std::vector<std::string> found;
  for (const auto& name : fs.list(folder)) {
    // step_NNNNNNNN sorts by step; temporary and dead folders have other names
    if (name.starts_with("step_") && fs.exists(folder + "/" + name + "/state.json"))
      found.push_back(folder + "/" + name);
  }
  HEARTH_CHECK(!found.empty(), Usage, "{}: holds no checkpoint with a state.json", path);
  return found;
}

// The ledger is wherever the trainer put it; its "format" tells. The JSON's depth is limited by the strict
// parser.
const json* find_ledger(const json& value) {
  if (value.is_object() && value.contains("format") && value["format"] == "hearth.data_ledger") return &value;
  if (!value.is_structured()) return nullptr;
  for (const auto& item : value) {
    if (const json* found = find_ledger(item)) return found;
  }
  return nullptr;
}

DataLedger read_ledger(FileSystem& fs, const std::string& checkpoint) {
  const std::string path = checkpoint + "/state.json";
  const json state = parse_json_strict(fs.read_text(path), path, {.kind = ErrorKind::Corrupt});
  const json* ledger = find_ledger(state);
  HEARTH_CHECK(ledger != nullptr, Corrupt, "{}: holds no data ledger; was the run trained on a dataset?",
               path);
  try {
    return ledger_from_json(*ledger);
  } catch (Error& error) {
    error.with("file", path);
    throw;
  }
}

}  // namespace

void add_data_audit_command(CLI::App& parent, CommandContext& context) {
  auto path = std::make_shared<std::string>();
  CLI::App* command = parent.add_subcommand(
      "audit", "Prove from the checkpoints' ledgers that no training window was repeated or skipped");
  command->add_option("path", *path, "Run folder or checkpoint")->required();
  command->callback([path, &context] {
    std::optional<DataLedger> earlier;
    for (const auto& checkpoint : checkpoints_of(context.fs, *path)) {
      DataLedger ledger = read_ledger(context.fs, checkpoint);
      const AuditReport report = audit_ledger(ledger);
      if (earlier) audit_succession(*earlier, ledger);
      std::cout << fmt::format("{}: {} samples, {} finished epochs, each window of an epoch at most once{}\n",
                               checkpoint, report.num_consumed, report.epochs_finished,
                               earlier ? ", continues the one before" : "");
      earlier = std::move(ledger);
    }
  });
}

}  // namespace hearth
