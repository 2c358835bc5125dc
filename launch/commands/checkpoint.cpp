// hearth checkpoint inspect|verify CKPT: what a checkpoint holds, and whether its bytes are what was written.
// CKPT is a checkpoint or a run folder (inspect: its newest verified checkpoint; verify: all of them).
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/log.h"
#include "launch/command.h"
#include "launch/commands/commands.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/find_checkpoint.h"

namespace hearth {
namespace {

using nlohmann::ordered_json;

struct Arguments {
  std::string path;
  bool json = false;
  bool slices = false;
};

ordered_json slice_json(const Manifest& manifest, const ManifestSlice& slice) {
  return {{"file", manifest.files[static_cast<size_t>(slice.file)].name},
          {"offset", slice.offset},
          {"box_offset", slice.box.offset},
          {"extent", slice.box.extent},
          {"range", {slice.begin, slice.end}}};
}

ordered_json describe(const CheckpointReader& reader) {
  const Manifest& manifest = reader.manifest();
  int64_t bytes = 0;
  ordered_json files = ordered_json::array(), tensors = ordered_json::array();
  for (const auto& file : manifest.files) {
    bytes += file.bytes;
    files.push_back({{"name", file.name}, {"bytes", file.bytes}, {"xxh3_128", file.digest}});
  }
  for (const auto& tensor : manifest.tensors) {
    ordered_json slices = ordered_json::array();
    for (const auto& slice : tensor.slices) slices.push_back(slice_json(manifest, slice));
    tensors.push_back({{"name", tensor.info.name},
                       {"dtype", safetensors_name(tensor.info.dtype)},
                       {"shape", tensor.info.shape},
                       {"slices", slices}});
  }
  return {{"path", reader.directory()},
          {"format_version", kCheckpointFormatVersion},
          {"step", reader.step()},
          {"attempt", manifest.attempt},
          {"world_size", manifest.world_size},
          {"mesh", manifest.identity.mesh},
          {"config_hash", manifest.identity.config_hash},
          {"data_fingerprint", manifest.identity.data_fingerprint},
          {"tokenizer_digest", manifest.identity.tokenizer_digest},
          {"bytes", bytes},
          {"files", files},
          {"tensors", tensors},
          {"state", ordered_json::parse(reader.state_json())}};
}

// "optimizer.lr = 0.0003   (configs/mine.yaml:14)" for each key of the resolved configuration.
void print_config(const ordered_json& state) {
  const auto config = state.find("config");
  if (config == state.end() || !config->is_object()) return;
  std::cout << "\nconfiguration\n";
  for (const auto& [key, entry] : config->items()) {
    const bool has_origin = entry.is_object() && entry.contains("value") && entry.contains("origin");
    std::cout << fmt::format("  {} = {}", key, (has_origin ? entry["value"] : entry).dump());
    if (has_origin && entry["origin"].is_string())
      std::cout << "   (" << entry["origin"].get<std::string>() << ")";
    std::cout << "\n";
  }
}

void print_text(const ordered_json& info, bool with_slices) {
  for (const char* key : {"path", "step", "attempt", "world_size", "mesh", "config_hash", "data_fingerprint",
                          "tokenizer_digest", "bytes"})
    std::cout << fmt::format("{:<18}{}\n", key,
                             info[key].is_string() ? info[key].get<std::string>() : info[key].dump());
  std::cout << "\nfiles\n";
  for (const auto& file : info["files"])
    std::cout << fmt::format("  {:<36}{:>16} bytes  {}\n", file["name"].get<std::string>(),
                             file["bytes"].get<int64_t>(), file["xxh3_128"].get<std::string>());
  std::cout << "\ntensors\n";
  for (const auto& tensor : info["tensors"]) {
    std::cout << fmt::format("  {:<64}{:<5}{:<18}{} slices\n", tensor["name"].get<std::string>(),
                             tensor["dtype"].get<std::string>(), tensor["shape"].dump(),
                             tensor["slices"].size());
    if (!with_slices) continue;
    for (const auto& slice : tensor["slices"]) std::cout << "      " << slice.dump() << "\n";
  }
  print_config(info["state"]);
}

void inspect(const Arguments& arguments, CommandContext& context) {
  if (context.job.control->rank() != 0) return;
  Log log;
  const auto alone = make_single_control_plane();
  const auto reader = find_checkpoint(context.fs, *alone, log, arguments.path);
  HEARTH_CHECK(reader != nullptr, Corrupt, "run folder {} has no checkpoint yet", arguments.path);
  const auto info = describe(*reader);
  if (arguments.json)
    std::cout << info.dump(1) << "\n";
  else
    print_text(info, arguments.slices);
}

// One line per checkpoint; exit code 5 when any does not verify.
void verify(const Arguments& arguments, CommandContext& context) {
  if (context.job.control->rank() != 0) return;
  const bool is_run = !is_checkpoint(context.fs, arguments.path) && is_run_folder(context.fs, arguments.path);
  const auto paths =
      is_run ? list_checkpoints(context.fs, arguments.path) : std::vector<std::string>{arguments.path};
  HEARTH_CHECK(!paths.empty(), Corrupt, "run folder {} has no checkpoint yet", arguments.path);
  ordered_json results = ordered_json::array();
  std::string first_reason;
  for (const auto& path : paths) {
    std::string reason;
    try {
      CheckpointReader::open(context.fs, path, Verify::Everything);
    } catch (const Error& error) {
      reason = error.message();
    }
    if (first_reason.empty()) first_reason = reason;
    results.push_back({{"path", path}, {"ok", reason.empty()}, {"reason", reason}});
    if (!arguments.json)
      std::cout << (reason.empty() ? "ok        " : "rejected  ") << path
                << (reason.empty() ? "" : "  " + reason) << "\n";
  }
  if (arguments.json)
    std::cout << ordered_json{{"ok", first_reason.empty()}, {"checkpoints", results}}.dump(1) << "\n";
  HEARTH_CHECK(first_reason.empty(), Corrupt, "{}", first_reason);
}

}  // namespace

void add_checkpoint_command(CLI::App& parent, CommandContext& context) {
  CLI::App* app = parent.add_subcommand("checkpoint", "Look into checkpoints, and check their digests");
  app->require_subcommand(1);
  const auto add = [&](const char* name, const char* help, void (*run)(const Arguments&, CommandContext&)) {
    auto arguments = std::make_shared<Arguments>();
    CLI::App* verb = app->add_subcommand(name, help);
    verb->add_option("CKPT", arguments->path, "A checkpoint, or a run folder")->required();
    verb->add_flag("--json", arguments->json, "One JSON object on stdout");
    if (run == inspect) verb->add_flag("--slices", arguments->slices, "Also list where each slice lies");
    verb->callback([arguments, run, &context] { run(*arguments, context); });
  };
  add("inspect", "Step, layout, files with digests, tensors, configuration with the origin of each key",
      inspect);
  add("verify", "Read every byte and compare digests; exit 5 when a checkpoint does not verify", verify);
}

}  // namespace hearth
