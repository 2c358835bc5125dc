// hearth generate MODEL --prompt TEXT: continues a text, or answers a ChatML turn with --chat.
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "launch/command.h"
#include "launch/commands/commands.h"
#include "launch/commands/model_options.h"
#include "data/tokenizer/incremental_decoder.h"
#include "trainer/chatml.h"
#include "trainer/generate.h"
#include "trainer/loaded_model.h"

namespace hearth {
namespace {

struct GenerateOptions {
  ModelOptions model;
  std::string prompt, system;
  bool chat = false, json = false;
  GenerationOptions generation;
};

// ChatML (OpenAI's chat markup, as Qwen and SmolLM2 use it). A system turn only where one is given, or where the model's
// own template has a default one.
std::string chatml(const GenerateOptions& options, const LoadedModel& model) {
  const Tokenizer& tokenizer = model.require_tokenizer();
  HEARTH_CHECK(tokenizer.token_to_id("<|im_start|>") && tokenizer.token_to_id("<|im_end|>"), BadInput,
               "--chat needs a tokenizer with <|im_start|> and <|im_end|> (ChatML); {} has none: write the model's own "
               "chat markup into --prompt instead",
               model.bundle.origin);
  const std::string system = options.system.empty() ? default_system_message(tokenizer.chat_template()) : options.system;
  std::string text;
  if (!system.empty()) text += "<|im_start|>system\n" + system + "<|im_end|>\n";
  return text + "<|im_start|>user\n" + options.prompt + "<|im_end|>\n<|im_start|>assistant\n";
}

void run_generate(GenerateOptions& options, CommandContext& context) {
  HEARTH_REQUIRE(options.generation.max_new_tokens > 0, "--max-new-tokens must be > 0, got {}",
                 options.generation.max_new_tokens);
  HEARTH_REQUIRE(options.generation.sampling.temperature >= 0, "--temperature must be >= 0, got {}",
                 options.generation.sampling.temperature);
  HEARTH_REQUIRE(options.generation.sampling.top_p > 0 && options.generation.sampling.top_p <= 1,
                 "--top-p must be in (0, 1], got {}", options.generation.sampling.top_p);
  const at::Device device =
      select_device(parse_device_choice(options.model.device), context.job.control->local_rank());
  const LoadedModel model = load_model(context.fs, options.model.model, options.model.parsed_dtype(), device);
  const Tokenizer& tokenizer = model.require_tokenizer();
  // ChatML spells its special tokens out; a plain prompt gets what the tokenizer's post-processor adds.
  const auto prompt = options.chat ? tokenizer.encode(chatml(options, model), SpecialTokens::Skip)
                                   : tokenizer.encode(options.prompt, SpecialTokens::Add);
  options.generation.eos_ids = model.eos_ids();
  if (options.chat) options.generation.eos_ids.push_back(*tokenizer.token_to_id("<|im_end|>"));
  IncrementalDecoder decoder(tokenizer, DecodeSpecial::Skip);
  const auto stream = [&](int32_t id) {
    if (!options.json) std::cout << decoder.push(id) << std::flush;
  };
  const Generation out = generate(*model.transformer, prompt, options.generation, stream);
  if (!options.json) {
    std::cout << decoder.finish() << "\n";
    return;
  }
  const nlohmann::json json{{"prompt", options.prompt},
                            {"prompt_ids", prompt},
                            {"ids", out.ids},
                            {"text", tokenizer.decode(out.ids, DecodeSpecial::Skip)},
                            {"finish_reason", out.finish == FinishReason::Stop ? "stop" : "length"}};
  std::cout << json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
}

}  // namespace

void add_generate_command(CLI::App& parent, CommandContext& context) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = parent.add_subcommand("generate", "Continue a prompt, or answer it with --chat");
  options->model.add_to(*command);
  command->add_option("--prompt", options->prompt, "Text to continue, or the user's turn with --chat")->required();
  command->add_flag("--chat", options->chat, "Wrap the prompt as a ChatML conversation");
  command->add_option("--system", options->system, "System turn for --chat (default: the model's own)");
  command->add_option("--max-new-tokens", options->generation.max_new_tokens, "Most tokens to add")->capture_default_str();
  command->add_option("--temperature", options->generation.sampling.temperature, "0 = greedy")->capture_default_str();
  command->add_option("--top-p", options->generation.sampling.top_p, "Nucleus sampling: share of probability kept")
      ->capture_default_str();
  command->add_option("--seed", options->generation.seed, "Of the draws")->capture_default_str();
  command->add_flag("--json", options->json, "One JSON object on standard output");
  command->callback([options, &context] { run_generate(*options, context); });
}

}  // namespace hearth
