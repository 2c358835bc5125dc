// hearth export MODEL --output DIR: an HF directory for serving engines, published only after it was read
// back.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>

#include "base/log.h"
#include "launch/command.h"
#include "launch/commands/commands.h"
#include "launch/commands/model_options.h"
#include "launch/commands/transfer_progress.h"
#include "parallel/mesh.h"
#include "trainer/interchange/export_model.h"
#include "trainer/interchange/lora_model.h"
#include "trainer/loaded_model.h"
#include "trainer/model/model_partition.h"
#include "trainer/prompt_logits.h"

namespace hearth {
namespace {

struct Arguments {
  std::string model, output, dtype;
  std::vector<std::string> overrides;
  bool overwrite = false, allow_forgetting = false, adapters = false;
};

// The ranks of this host hold their shares in fp32. Where that is more than half of the free memory of some
// host, the model is exported all the same, on the strength of its configuration and of every tensor having
// been read back equal.
bool fits_in_memory(const ModelConfig& model, const ParallelConfig& layout, ControlPlane& control) {
  const double free =
      static_cast<double>(::sysconf(_SC_AVPHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
  const auto shares =
      static_cast<double>(layout.pipeline_model_parallel_size * layout.tensor_model_parallel_size);
  const double bytes =
      4.0 * static_cast<double>(parameter_count(model)) / shares * control.local_world_size();
  return control.vote(bytes <= free / 2, "", "export.memory", nullptr);
}

IfForgotten if_forgotten(const Arguments& arguments) {
  return arguments.allow_forgetting ? IfForgotten::Publish : IfForgotten::Refuse;
}

void publish_adapters(const Arguments& arguments, const std::string& output, const ModelBundle& model,
                      CommandContext& context, Log& log) {
  HEARTH_CHECK(model.adapters != nullptr, Usage, "{} has no adapters: leave out --adapters", model.origin);
  check_forgetting(model, if_forgotten(arguments),
                   [&](const std::string& text) { log.warning("event=export_warning text=\"{}\"", text); });
  if (context.job.control->rank() != 0) return;
  export_adapters(context.fs, output,
                  {.adapters = *model.adapters,
                   .base = model.config,
                   .lora = model.lora,
                   .base_model = model.base_model,
                   .dtype = parse_transfer_dtype(arguments.dtype)});
  std::cout << fmt::format(
      "exported {}\n  adapters      {} parameters of rank {} on {}\n  directory     {}\n", model.origin,
      lora_parameter_count(model.config, model.lora), model.lora.rank, model.base_model, output);
}

void run(const Arguments& arguments, CommandContext& context) {
  ControlPlane& control = *context.job.control;
  Log log(Log::Options{.rank = control.rank(), .world_size = control.world_size()});
  std::string output = arguments.output;
  while (output.size() > 1 && output.ends_with('/')) output.pop_back();
  const ModelBundle model = open_model(context.fs, control, log, arguments.model);
  if (arguments.adapters) return publish_adapters(arguments, output, model, context, log);
  TransferProgress progress(context, "export");
  const ParallelConfig layout =
      layout_to_answer(arguments.overrides, layout_of_all(model.config, control.world_size()), control, log);
  require_tensor_parallel(model.config, Mesh::from_config(layout, control.world_size()).size(MeshAxis::Tp));
  LogitsFunction logits;
  if (fits_in_memory(model.config, layout, control)) {
    logits = [&](const ModelConfig& config, const TensorSource& tensors, const std::vector<int32_t>& ids) {
      return prompt_logits(context.job, layout, config, tensors, ids);
    };
  } else if (control.rank() == 0) {
    log.warning(
        "event=export_warning text=\"the model is too large for these hosts to compare logits: start more "
        "ranks on "
        "more of them\"");
  }
  export_model(
      context.fs, control, model,
      {.output = output,
       .dtype = parse_transfer_dtype(arguments.dtype),
       .if_exists = arguments.overwrite ? IfOutputExists::Replace : IfOutputExists::Refuse,
       .if_forgotten = if_forgotten(arguments),
       .logits = std::move(logits),
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
  app->add_option(
         "--set", arguments->overrides,
         "parallel.key=value: how ranks share the model when logits are compared (default: all of them "
         "one copy); repeatable")
      ->allow_extra_args(false);
  app->add_flag("--overwrite", arguments->overwrite,
                "Replace the model that --output holds, once the new one is checked");
  app->add_flag("--adapters", arguments->adapters,
                "Of a LoRA run: the adapters alone, as a PEFT directory, in place of the merged model");
  app->add_flag("--allow-forgetting", arguments->allow_forgetting,
                "Publish a model that forgot more than objective.incremental.max_forgetting of its run");
  app->callback([arguments, &context] { run(*arguments, context); });
}

}  // namespace hearth
