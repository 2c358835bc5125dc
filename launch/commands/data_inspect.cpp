// hearth data inspect DIR [--json]: counts, sources, digests, and a decoded sample of a dataset.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "data/dataset.h"
#include "data/prepare.h"
#include "data/tokenizer/tokenizer.h"
#include "launch/command.h"
#include "launch/commands/commands.h"

namespace hearth {
namespace {

using nlohmann::ordered_json;

constexpr size_t kSampleTokens = 64;

struct InspectOptions {
  std::string directory;
  bool json = false;
};

ordered_json describe(FileSystem& fs, const std::string& folder) {
  const auto dataset = Dataset::open(fs, folder);
  const DatasetManifest& manifest = dataset->manifest();
  const auto tokenizer = Tokenizer::load(fs, dataset->tokenizer_directory());
  std::vector<int32_t> sample = dataset->document(0);
  sample.resize(std::min(sample.size(), kSampleTokens));
  ordered_json sources = ordered_json::array(), shards = ordered_json::array();
  for (const auto& source : manifest.sources) {
    sources.push_back({{"path", source.path},
                       {"digest", source.digest},
                       {"selector", source.selector},
                       {"documents", source.num_documents},
                       {"skipped_lines", source.num_skipped}});
  }
  for (const auto& shard : manifest.shards) {
    shards.push_back({{"file", shard.file},
                      {"documents", shard.num_documents},
                      {"tokens", shard.num_tokens},
                      {"bytes", shard.size_bytes},
                      {"digest", shard.digest}});
  }
  return {
      {"directory", folder},
      {"split", manifest.split},
      {"documents", dataset->num_documents()},
      {"tokens", dataset->num_tokens()},
      {"token_dtype", manifest.shards.front().token_bytes == 2 ? "uint16" : "uint32"},
      {"vocab_size", dataset->vocab_size()},
      {"eos_id", manifest.common.eos_id < 0 ? ordered_json(nullptr) : ordered_json(manifest.common.eos_id)},
      {"tokenizer_digest", dataset->tokenizer_digest()},
      {"digest", dataset->digest()},
      {"sources", sources},
      {"shards", shards},
      {"sample", {{"ids", sample}, {"text", tokenizer->decode(sample, DecodeSpecial::Keep)}}}};
}

std::string counted(const ordered_json& list) {
  return std::to_string(list.size());
}

void print_plain(const ordered_json& info) {
  std::cout << fmt::format("{}: {} documents, {} tokens ({}), {} shards, {} sources\n",
                           info["directory"].get<std::string>(), info["documents"].get<int64_t>(),
                           info["tokens"].get<int64_t>(), info["token_dtype"].get<std::string>(),
                           counted(info["shards"]), counted(info["sources"]));
  std::cout << fmt::format("  vocabulary {}  eos {}  tokenizer {}  digest {}\n",
                           info["vocab_size"].get<int64_t>(), info["eos_id"].dump(),
                           info["tokenizer_digest"].get<std::string>(), info["digest"].get<std::string>());
  for (const auto& source : info["sources"]) {
    std::cout << fmt::format("  source {}  {}  {} documents", source["digest"].get<std::string>(),
                             source["path"].get<std::string>(), source["documents"].get<int64_t>());
    const auto skipped = source["skipped_lines"].get<int64_t>();
    std::cout << (skipped > 0 ? fmt::format(", {} bad lines left out\n", skipped) : "\n");
  }
  for (const auto& shard : info["shards"]) {
    std::cout << fmt::format("  shard  {}  {}  {} documents  {} tokens  {} bytes\n",
                             shard["digest"].get<std::string>(), shard["file"].get<std::string>(),
                             shard["documents"].get<int64_t>(), shard["tokens"].get<int64_t>(),
                             shard["bytes"].get<int64_t>());
  }
  // As a JSON string: a sample may hold control characters, which must not reach a terminal.
  std::cout << "  sample " << info["sample"]["text"].dump() << "\n";
}

}  // namespace

void add_data_inspect_command(CLI::App& parent, CommandContext& context) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* command =
      parent.add_subcommand("inspect", "Counts, sources, digests and a decoded sample of a dataset");
  command
      ->add_option("directory", options->directory,
                   "Folder with dataset.json, or with train/ and validation/")
      ->required();
  command->add_flag("--json", options->json, "One JSON object on standard output");
  command->callback([options, &context] {
    ordered_json datasets = ordered_json::array();
    for (const auto& folder : dataset_folders(context.fs, options->directory))
      datasets.push_back(describe(context.fs, folder));
    if (!options->json) {
      for (const auto& info : datasets) print_plain(info);
    } else if (datasets.size() == 1) {
      std::cout << datasets[0].dump() << "\n";
    } else {
      std::cout << ordered_json({{"directory", options->directory},
                                 {"train", datasets[0]},
                                 {"validation", datasets[1]}})
                       .dump()
                << "\n";
    }
  });
}

}  // namespace hearth
