// hearth eval MODEL (--data DIR | --text FILE): mean loss per token in nats, perplexity, token count.
#include <ATen/ops/tensor.h>
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "data/dataset.h"
#include "launch/command.h"
#include "launch/commands/commands.h"
#include "launch/commands/experiment.h"
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

struct Documents {
  int64_t count = 0;
  std::function<ScoredDocument(int64_t index)> get;
};

// The whole file is one document, cut at the model's context.
Documents text_document(const EvalOptions& options, const LoadedModel& model, CommandContext& context) {
  auto ids = model.require_tokenizer().encode(context.fs.read_text(options.text), SpecialTokens::Add);
  const auto limit = static_cast<size_t>(model.bundle.config.max_position_embeddings);
  HEARTH_CHECK(ids.size() >= 2, BadInput, "{}: {} tokens; at least 2 are needed to score one", options.text,
               ids.size());
  if (ids.size() > limit) {
    if (context.job.control->rank() == 0)
      fmt::print(stderr, "eval: {} has {} tokens, the first {} (max_position_embeddings) are scored\n",
                 options.text, ids.size(), limit);
    ids.resize(limit);
  }
  return {1, [ids = std::move(ids)](int64_t) { return ScoredDocument{ids, {}}; }};
}

// What is not learnt is read, not scored; what comes behind the last token that counts (padding) is left out.
ScoredDocument masked_document(const Dataset& dataset, int64_t index) {
  ScoredDocument document{dataset.document(index), dataset.document_loss_mask(index)};
  while (!document.loss_mask.empty() && document.loss_mask.back() == 0) document.loss_mask.pop_back();
  document.ids.resize(document.loss_mask.size());
  return document;
}

Documents dataset_documents(const EvalOptions& options, const LoadedModel& model, CommandContext& context) {
  std::shared_ptr<Dataset> dataset = Dataset::open(context.fs, options.data);
  HEARTH_CHECK(
      model.bundle.tokenizer == nullptr || model.bundle.tokenizer->digest() == dataset->tokenizer_digest(),
      BadInput,
      "{} was prepared with another tokenizer (digest {}) than {} carries (digest {}): prepare the text "
      "again "
      "with this model's tokenizer",
      options.data, dataset->tokenizer_digest(), model.bundle.origin, model.bundle.tokenizer->digest());
  return {dataset->num_documents(), [dataset](int64_t index) {
            return dataset->kind() == "text" ? ScoredDocument{dataset->document(index), {}}
                                             : masked_document(*dataset, index);
          }};
}

std::string per_token_line(const DocumentScore& document) {
  nlohmann::json logprobs = nlohmann::json::array();
  for (const auto& value : document.logprobs)
    logprobs.push_back(value ? nlohmann::json(*value) : nlohmann::json());
  return nlohmann::json{{"ids", document.ids}, {"logprobs", std::move(logprobs)}}.dump() + "\n";
}

// Adds what `more` counted.
void add(EvaluationTotals& totals, const EvaluationTotals& more) {
  totals.loss_sum += more.loss_sum;
  totals.num_tokens += more.num_tokens;
  totals.num_documents += more.num_documents;
  totals.target_counts.resize(more.target_counts.size());
  for (size_t i = 0; i < more.target_counts.size(); ++i) totals.target_counts[i] += more.target_counts[i];
}

// The sum over replicas, on every rank.
EvaluationTotals sum_over_replicas(const EvaluationTotals& mine, const LoadedModel& model) {
  std::vector<double> values = {mine.loss_sum, static_cast<double>(mine.num_tokens),
                                static_cast<double>(mine.num_documents)};
  for (const int64_t count : mine.target_counts) values.push_back(static_cast<double>(count));
  if (!model.speaks_for_replica()) std::fill(values.begin(), values.end(), 0.0);
  at::Tensor sums = at::tensor(values, at::kDouble).to(model.inference->device());
  model.groups->everyone()
      .all_reduce(sums.data_ptr(), sums.numel(), DType::F64, ReduceOp::Sum, "eval.totals")
      ->wait();
  sums = sums.to(at::kCPU);
  const double* value = sums.data_ptr<double>();
  EvaluationTotals totals{.loss_sum = value[0],
                          .num_tokens = std::llround(value[1]),
                          .num_documents = std::llround(value[2]),
                          .target_counts = {}};
  for (int64_t i = 3; i < sums.numel(); ++i) totals.target_counts.push_back(std::llround(value[i]));
  return totals;
}

// Replicas take blocks of documents in turn, so that per-token lines come in the order of documents with a
// bounded number of them in memory. They meet after every document of a block: no deadline sees more than one
// document of difference.
EvaluationTotals score(const EvalOptions& options, const LoadedModel& model, const Documents& documents,
                       CommandContext& context) {
  const int64_t block =
      std::clamp<int64_t>((documents.count + model.num_replicas() - 1) / model.num_replicas(), 1, 64);
  ControlPlane& control = *context.job.control;
  std::unique_ptr<WritableFile> per_token;
  if (!options.per_token.empty() && control.rank() == 0)
    per_token = context.fs.create(options.per_token, CreateMode::Truncate);
  EvaluationTotals totals;
  for (int64_t round = 0; round < documents.count; round += block * model.num_replicas()) {
    if (round > 0 && control.rank() == 0)
      fmt::print(stderr, "eval: {} of {} documents\n", round, documents.count);
    int64_t index = round + block * model.replica(), meetings = 0;
    const int64_t end = std::min(index + block, documents.count);
    const auto next = [&]() -> std::optional<ScoredDocument> {
      if (index >= end) return std::nullopt;
      return documents.get(index++);
    };
    const auto meet = [&] {
      if (model.num_replicas() > 1) control.barrier("eval.document");
      ++meetings;
    };
    std::string lines;
    add(totals, evaluate(*model.inference, next, [&](const DocumentScore& document) {
          if (!options.per_token.empty() && model.speaks_for_replica()) lines += per_token_line(document);
          meet();
        }));
    while (meetings < block) meet();
    if (options.per_token.empty()) continue;
    std::vector<std::pair<int, std::string>> blocks;
    const auto texts = control.all_gather(lines, "eval.per_token");
    for (size_t rank = 0; rank < texts.size(); ++rank)
      blocks.emplace_back(model.groups->mesh.coordinate(static_cast<int>(rank), MeshAxis::Dp), texts[rank]);
    std::stable_sort(blocks.begin(), blocks.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    for (const auto& [replica, text] : blocks)
      if (per_token) per_token->write(text);
  }
  if (per_token) per_token->close();
  return sum_over_replicas(totals, model);
}

void run_eval(const EvalOptions& options, CommandContext& context) {
  HEARTH_REQUIRE(options.data.empty() != options.text.empty(), "give one of --data DIR and --text FILE");
  ControlPlane& control = *context.job.control;
  Log log({.rank = control.rank(), .world_size = control.world_size()});
  ModelBundle bundle = open_model(context.fs, control, log, options.model.model);
  // One document is one rank's work, so all ranks share the model; else each rank that it fits is a replica.
  const ParallelConfig layout = layout_to_answer(
      options.model.overrides,
      options.text.empty() ? answering_layout({}) : layout_of_all(bundle.config, control.world_size()),
      control, log);
  const at::Device device =
      take_device(options.model.device, Mesh::from_config(layout, control.world_size()), context).device;
  share_device(context, device, log);
  const LoadedModel model =
      load_model(std::move(bundle), options.model.parsed_dtype(), device, context.job, layout);
  const Documents documents = options.text.empty() ? dataset_documents(options, model, context)
                                                   : text_document(options, model, context);
  const EvaluationTotals totals = score(options, model, documents, context);
  HEARTH_CHECK(totals.num_tokens > 0, BadInput,
               "nothing to score: no document has two tokens or more, or in none a token is learnt");
  HEARTH_CHECK(std::isfinite(totals.loss()), Numeric, "the loss of {} is not finite: its weights are damaged",
               model.bundle.origin);
  const nlohmann::json json{{"loss", totals.loss()},
                            {"perplexity", std::exp(totals.loss())},
                            {"num_tokens", totals.num_tokens},
                            {"num_documents", totals.num_documents},
                            {"unigram_loss", totals.unigram_loss()},
                            {"dtype", config_name(model.parameters->options().dtype)},
                            {"model", model.bundle.origin}};
  if (control.rank() != 0) return;
  if (options.json) {
    std::cout << json.dump() << "\n";
    return;
  }
  fmt::print(
      "loss          {:.6f} nats per token\nperplexity    {:.4f}\ntokens        {}\ndocuments     {}\n"
      "unigram loss  {:.6f} (the same tokens under their own frequencies)\n",
      totals.loss(), std::exp(totals.loss()), totals.num_tokens, totals.num_documents, totals.unigram_loss());
}

}  // namespace

void add_eval_command(CLI::App& parent, CommandContext& context) {
  auto options = std::make_shared<EvalOptions>();
  CLI::App* command =
      parent.add_subcommand("eval", "Mean loss and perplexity of a model on prepared data or a text file");
  options->model.add_to(*command);
  command->add_option(
      "--data", options->data,
      "Dataset folder, as `hearth data prepare` writes it; of conversations what is learnt is scored");
  command->add_option("--text", options->text, "Text file: one document, cut at max_position_embeddings");
  command->add_option(
      "--per-token", options->per_token,
      "Write {\"ids\": [...], \"logprobs\": [null, ...]} per document, one JSON object a line");
  command->add_flag("--json", options->json, "One JSON object on standard output");
  command->callback([options, &context] { run_eval(*options, context); });
}

}  // namespace hearth
