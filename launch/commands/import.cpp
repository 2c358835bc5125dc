// hearth import SOURCE --output CKPT: an HF directory or a GGUF file becomes a checkpoint.
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "base/error.h"
#include "base/log.h"
#include "launch/command.h"
#include "launch/commands/commands.h"
#include "launch/commands/transfer_progress.h"
#include "trainer/interchange/import_model.h"
#include "trainer/model/model_config.h"

namespace hearth {
namespace {

struct Arguments {
  std::string source, output, dtype;
};

void run(const Arguments& arguments, CommandContext& context) {
  ControlPlane& control = *context.job.control;
  Log log(Log::Options{.rank = control.rank(), .world_size = control.world_size()});
  const ModelBundle model = open_model(context.fs, control, log, arguments.source, AcceptGguf::Yes);
  HEARTH_CHECK(model.kind != ModelKind::Checkpoint, Usage,
               "{} is a Hearth checkpoint already; import reads HF directories and GGUF files", model.origin);
  TransferProgress progress(context, "import");
  import_model(context.fs, control, log, model,
               {.output = arguments.output,
                .dtype = parse_transfer_dtype(arguments.dtype),
                .progress = [&](int64_t done, int64_t total) { progress.update(done, total); }});
  progress.finish();
  if (control.rank() != 0) return;
  std::cout << fmt::format(
      "imported {}\n  family      {}\n  parameters  {}\n  tokenizer   {}\n  checkpoint  {}\n", model.origin,
      model.config.family, parameter_count(model.config),
      model.tokenizer ? fmt::format("{} entries", model.tokenizer->vocab_size()) : "none", arguments.output);
}

}  // namespace

void add_import_command(CLI::App& parent, CommandContext& context) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* app = parent.add_subcommand(
      "import", "Turn an HF directory or a GGUF file into a checkpoint (weights, tokenizer, configuration)");
  app->add_option("SOURCE", arguments->source, "HF directory (config.json, safetensors) or GGUF file")
      ->required();
  app->add_option("--output", arguments->output, "Checkpoint folder to write; must not exist")->required();
  app->add_option("--dtype", arguments->dtype, "bf16, fp32 or fp16; default: as stored (GGUF: fp32)");
  app->callback([arguments, &context] { run(*arguments, context); });
}

}  // namespace hearth
