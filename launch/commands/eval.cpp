// hearth eval MODEL (--data DIR | --text FILE): mean loss per token in nats, perplexity, token count.
#include <CLI/CLI.hpp>
#include <cmath>
#include <fmt/core.h>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "data/dataset.h"
#include "launch/command.h"
#include "launch/commands/commands.h"
#include "launch/commands/model_options.h"
#include "trainer/evaluate.h"
#include "trainer/loaded_model.h"

namespace hearth {
namespace {

struct EvalOptions {
  ModelOptions model;
  std::string data, text, per_token;
  bool json = false;
};

using NextDocument = std::function<std::optional<std::vector<int32_t>>()>;

// The whole file is one document, cut at the model's context.
NextDocument text_document(const EvalOptions& options, const LoadedModel& model, CommandContext& context) {
  auto ids = model.require_tokenizer().encode(context.fs.read_text(options.text), SpecialTokens::Add);
  const auto limit = static_cast<size_t>(model.bundle.config.max_position_embeddings);
  HEARTH_CHECK(ids.size() >= 2, BadInput, "{}: {} tokens; at least 2 are needed to score one", options.text, ids.size());
  if (ids.size() > limit) {
    fmt::print(stderr, "eval: {} has {} tokens, the first {} (max_position_embeddings) are scored\n", options.text,
               ids.size(), limit);
    ids.resize(limit);
  }
  return [ids = std::move(ids), done = false]() mutable -> std::optional<std::vector<int32_t>> {
    if (std::exchange(done, true)) return std::nullopt;
    return ids;
  };
}

NextDocument dataset_documents(const EvalOptions& options, const LoadedModel& model, CommandContext& context) {
  std::shared_ptr<Dataset> dataset = Dataset::open(context.fs, options.data);
  HEARTH_CHECK(model.bundle.tokenizer == nullptr || model.bundle.tokenizer->digest() == dataset->tokenizer_digest(), BadInput,
               "{} was prepared with another tokenizer (digest {}) than {} carries (digest {}): prepare the text again "
               "with this model's tokenizer",
               options.data, dataset->tokenizer_digest(), model.bundle.origin, model.bundle.tokenizer->digest());
  return [dataset, index = int64_t{0}]() mutable -> std::optional<std::vector<int32_t>> {
    if (index >= dataset->num_documents()) return std::nullopt;
    if (index % 1000 == 0 && index > 0)
      fmt::print(stderr, "eval: {} of {} documents\n", index, dataset->num_documents());
    return dataset->document(index++);
  };
}

std::string per_token_line(const DocumentScore& document) {
  nlohmann::json logprobs = nlohmann::json::array();
  for (const auto& value : document.logprobs) logprobs.push_back(value ? nlohmann::json(*value) : nlohmann::json());
  return nlohmann::json{{"ids", document.ids}, {"logprobs", std::move(logprobs)}}.dump() + "\n";
}

void run_eval(const EvalOptions& options, CommandContext& context) {
  HEARTH_REQUIRE(options.data.empty() != options.text.empty(), "give one of --data DIR and --text FILE");
  const at::Device device =
      select_device(parse_device_choice(options.model.device), context.job.control->local_rank());
  const LoadedModel model = load_model(context.fs, options.model.model, options.model.parsed_dtype(), device);
  const auto next = options.text.empty() ? dataset_documents(options, model, context)
                                         : text_document(options, model, context);
  std::unique_ptr<WritableFile> per_token;
  if (!options.per_token.empty()) per_token = context.fs.create(options.per_token, CreateMode::Truncate);
  const EvaluationTotals totals = evaluate(*model.transformer, next, [&](const DocumentScore& document) {
    if (per_token) per_token->write(per_token_line(document));
  });
  if (per_token) per_token->close();
  HEARTH_CHECK(totals.num_tokens > 0, BadInput, "nothing to score: no document has two tokens or more");
  HEARTH_CHECK(std::isfinite(totals.loss()), Numeric, "the loss of {} is not finite: its weights are damaged",
               model.bundle.origin);
  const nlohmann::json json{{"loss", totals.loss()},
                            {"perplexity", std::exp(totals.loss())},
                            {"num_tokens", totals.num_tokens},
                            {"num_documents", totals.num_documents},
                            {"unigram_loss", totals.unigram_loss()},
                            {"dtype", config_name(model.parameters->options().dtype)},
                            {"model", model.bundle.origin}};
  if (options.json) {
    std::cout << json.dump() << "\n";
    return;
  }
  fmt::print("loss          {:.6f} nats per token\nperplexity    {:.4f}\ntokens        {}\ndocuments     {}\n"
             "unigram loss  {:.6f} (the same tokens under their own frequencies)\n",
             totals.loss(), std::exp(totals.loss()), totals.num_tokens, totals.num_documents, totals.unigram_loss());
}

}  // namespace

void add_eval_command(CLI::App& parent, CommandContext& context) {
  auto options = std::make_shared<EvalOptions>();
  CLI::App* command = parent.add_subcommand("eval", "Mean loss and perplexity of a model on prepared data or a text file");
  options->model.add_to(*command);
  command->add_option("--data", options->data, "Dataset folder, as `hearth data prepare` writes it");
  command->add_option("--text", options->text, "Text file: one document, cut at max_position_embeddings");
  command->add_option("--per-token", options->per_token,
                      "Write {\"ids\": [...], \"logprobs\": [null, ...]} per document, one JSON object a line");
  command->add_flag("--json", options->json, "One JSON object on standard output");
  command->callback([options, &context] { run_eval(*options, context); });
}

}  // namespace hearth
