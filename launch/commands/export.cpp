// hearth export MODEL --output DIR: an HF directory for serving engines, published only after it was read
// back.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "base/log.h"
#include "launch/command.h"
#include "launch/commands/commands.h"
#include "launch/commands/transfer_progress.h"
#include "trainer/interchange/export_model.h"
#include "trainer/prompt_logits.h"

namespace hearth {
namespace {

struct Arguments {
  std::string model, output, dtype;
  bool overwrite = false;
};

// Comparing logits holds the model in fp32. One larger than half of this host's free memory is exported all
// the same, on the strength of its configuration and of every tensor having been read back equal.
bool fits_in_memory(const ModelConfig& config) {
  const double free =
      static_cast<double>(::sysconf(_SC_AVPHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
  return 4.0 * static_cast<double>(parameter_count(config)) <= free / 2;
}

void run(const Arguments& arguments, CommandContext& context) {
  ControlPlane& control = *context.job.control;
  Log log(Log::Options{.rank = control.rank(), .world_size = control.world_size()});
  std::string output = arguments.output;
  while (output.size() > 1 && output.ends_with('/')) output.pop_back();
  const ModelBundle model = open_model(context.fs, control, log, arguments.model);
  TransferProgress progress(context, "export");
  const bool with_logits = fits_in_memory(model.config);
  if (!with_logits && control.rank() == 0)
    log.warning("event=export_warning text=\"the model is too large for this host to compare logits\"");
  export_model(
      context.fs, control, model,
      {.output = output,
       .dtype = parse_transfer_dtype(arguments.dtype),
       .if_exists = arguments.overwrite ? IfOutputExists::Replace : IfOutputExists::Refuse,
       .logits = with_logits ? LogitsFunction(prompt_logits) : LogitsFunction(),
       .progress = [&](int64_t done, int64_t total) { progress.update(done, total); },
       .warn = [&](const std::string& text) { log.warning("event=export_warning text=\"{}\"", text); }});
  progress.finish();
  if (control.rank() != 0) return;
  std::cout << fmt::format(
      "exported {}\n  architecture  {}\n  dtype         {}\n  tokenizer     {}\n  directory     {}\n",
      model.origin, hf_architecture(model.config.family),
      torch_name(parse_transfer_dtype(arguments.dtype).value_or(model.stored_dtype)),
      model.tokenizer ? fmt::format("{} entries", model.tokenizer->vocab_size()) : "none", output);
}

}  // namespace

void add_export_command(CLI::App& parent, CommandContext& context) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* app =
      parent.add_subcommand("export", "Publish a model as an HF directory that serving engines load");
  app->add_option("MODEL", arguments->model,
                  "Checkpoint, run folder (its newest verified checkpoint) or HF directory")
      ->required();
  app->add_option("--output", arguments->output, "Folder to publish; must not exist, or be empty")
      ->required();
  app->add_option("--dtype", arguments->dtype, "bf16, fp32 or fp16; default: as stored");
  app->add_flag("--overwrite", arguments->overwrite,
                "Replace the model that --output holds, once the new one is checked");
  app->callback([arguments, &context] { run(*arguments, context); });
}

}  // namespace hearth
