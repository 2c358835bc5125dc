// hearth data inspect DIR [--json]: counts, sources, digests, and a decoded sample of a dataset, with what of
// it is learnt.
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

constexpr size_t kSampleTokens = 64, kSampleTokensOfConversation = 400;

struct InspectOptions {
  std::string directory;
  bool json = false;
};

// The beginning of a document, and of one with a loss mask its parts: {"learnt": true, "text": ...}.
ordered_json sample_of(const Dataset& dataset, int64_t document, const Tokenizer& tokenizer) {
  std::vector<int32_t> ids = dataset.document(document);
  std::vector<uint8_t> mask = dataset.document_loss_mask(document);
  const bool masked = dataset.kind() != "text";
  while (masked && ids.size() > 1 && mask.back() == 0 && ids.back() == ids[ids.size() - 2])
    ids.pop_back(), mask.pop_back();  // padding
  ids.resize(std::min(ids.size(), masked ? kSampleTokensOfConversation : kSampleTokens));
  mask.resize(ids.size());
  ordered_json sample{{"ids", ids}, {"text", tokenizer.decode(ids, DecodeSpecial::Keep)}};
  if (!masked) return sample;
  sample["loss_mask"] = mask;
  ordered_json parts = ordered_json::array();
  std::string before;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i + 1 < ids.size() && mask[i + 1] == mask[i]) continue;
    // What the ids so far add to those before: some decoders write the first token of a text otherwise.
    const std::string so_far = tokenizer.decode(std::span(ids).first(i + 1), DecodeSpecial::Keep);
    parts.push_back(
        {{"learnt", mask[i] == 1}, {"text", so_far.substr(std::min(before.size(), so_far.size()))}});
    before = so_far;
  }
  sample["parts"] = parts;
  return sample;
}

// What a dataset of conversations has beyond one of text.
void describe_fine_tuning(const Dataset& dataset, const Tokenizer& tokenizer, ordered_json& out) {
  const FineTuningSettings& settings = *dataset.manifest().fine_tuning;
  int64_t trained = 0, padding = 0, bins = 0;
  for (const auto& shard : dataset.manifest().shards) {
    trained += shard.num_trained_tokens.value_or(0);
    padding += shard.num_padding_tokens.value_or(0);
    if (settings.pack_length > 0) bins += (shard.num_tokens - 1) / settings.pack_length;
  }
  const int64_t real = dataset.num_tokens() - padding;
  out["record_format"] = settings.record_format;
  out["chat_template_digest"] = settings.chat_template_digest.empty()
                                    ? ordered_json(nullptr)
                                    : ordered_json(settings.chat_template_digest);
  out["template_variables"] = settings.template_variables;
  out["train_on"] = settings.train_on;
  out["long_documents"] = settings.long_documents;
  out["pack_length"] = settings.pack_length;
  out["windows"] = bins;
  out["padding_tokens"] = padding;
  out["trained_tokens"] = trained;
  out["filled_share"] = static_cast<double>(real) / static_cast<double>(dataset.num_tokens());
  out["trained_share"] = static_cast<double>(trained) / static_cast<double>(real);
  if (settings.kind == "preference") out["sample_rejected"] = sample_of(dataset, 1, tokenizer);
}

ordered_json describe(FileSystem& fs, const std::string& folder) {
  const auto dataset = Dataset::open(fs, folder);
  const DatasetManifest& manifest = dataset->manifest();
  const auto tokenizer = Tokenizer::load(fs, dataset->tokenizer_directory());
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
  ordered_json out{
      {"directory", folder},
      {"kind", dataset->kind()},
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
      {"sample", sample_of(*dataset, 0, *tokenizer)}};
  if (manifest.fine_tuning) describe_fine_tuning(*dataset, *tokenizer, out);
  return out;
}

std::string counted(const ordered_json& list) {
  return std::to_string(list.size());
}

void print_fine_tuning(const ordered_json& info) {
  const ordered_json& digest = info["chat_template_digest"];
  std::cout << fmt::format("  kind {}  from {} records  chat template {}", info["kind"].get<std::string>(),
                           info["record_format"].get<std::string>(),
                           digest.is_null() ? "none" : digest.get<std::string>());
  if (const auto variables = info["template_variables"].get<std::string>(); variables != "{}")
    std::cout << " with " << variables;
  std::cout << fmt::format("\n  learnt: {}, {} tokens, {:.1f}% of those that are no padding\n",
                           info["train_on"].get<std::string>(), info["trained_tokens"].get<int64_t>(),
                           100 * info["trained_share"].get<double>());
  const auto pack_length = info["pack_length"].get<int64_t>();
  if (pack_length == 0) {
    std::cout << "  not packed\n";
    return;
  }
  std::cout << fmt::format("  packed into {} windows of {} tokens, {:.2f}% filled; what is longer was {}\n",
                           info["windows"].get<int64_t>(), pack_length,
                           100 * info["filled_share"].get<double>(),
                           info["long_documents"] == "cut" ? "cut" : "left out");
}

// One line per part, as JSON strings: a sample may hold control characters, which must not reach a terminal.
void print_parts(const char* what, const ordered_json& sample) {
  std::cout << what << "\n";
  for (const auto& part : sample["parts"])
    std::cout << (part["learnt"].get<bool>() ? "    learnt  " : "    given   ") << part["text"].dump()
              << "\n";
}

void print_plain(const ordered_json& info) {
  std::cout << fmt::format("{}: {} documents, {} tokens ({}), {} shards, {} sources\n",
                           info["directory"].get<std::string>(), info["documents"].get<int64_t>(),
                           info["tokens"].get<int64_t>(), info["token_dtype"].get<std::string>(),
                           counted(info["shards"]), counted(info["sources"]));
  std::cout << fmt::format("  vocabulary {}  eos {}  tokenizer {}  digest {}\n",
                           info["vocab_size"].get<int64_t>(), info["eos_id"].dump(),
                           info["tokenizer_digest"].get<std::string>(), info["digest"].get<std::string>());
  if (info["kind"] != "text") print_fine_tuning(info);
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
  if (info["kind"] == "text") {
    // As a JSON string: a sample may hold control characters, which must not reach a terminal.
    std::cout << "  sample " << info["sample"]["text"].dump() << "\n";
    return;
  }
  const bool pairs = info.contains("sample_rejected");
  print_parts(pairs ? "  sample, chosen" : "  sample", info["sample"]);
  if (pairs) print_parts("  sample, rejected", info["sample_rejected"]);
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
