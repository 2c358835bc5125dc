// hearth plan CONFIG --ranks N: what a layout will do, worked out on one machine without starting it.
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "launch/command.h"
#include "launch/commands/commands.h"
#include "launch/commands/experiment.h"
#include "launch/config_parser.h"
#include "launch/run_config.h"
#include "parallel/pipeline/timeline.h"
#include "trainer/communication_volume.h"
#include "trainer/memory_estimate.h"
#include "trainer/parallel_layout.h"
#include "trainer/pipeline_costs.h"

namespace hearth {
namespace {

using Json = nlohmann::ordered_json;

struct PlanOptions {
  std::string config, timeline, output;
  std::vector<std::string> overrides;
  int ranks = 0;
  bool json = false;
};

LoadedConfig load_complete(const PlanOptions& options, CommandContext& context, Log& log) {
  LoadedConfig loaded = load_experiment(context.fs, options.config, options.overrides);
  complete_config(loaded, open_data(context.fs, loaded.config, MissingData::Allow), context, log);
  const ModelSection& model = loaded.config.model;
  HEARTH_CHECK(!model.shape_is_open(), Config, "the model's shape is that of {}, which does not exist yet",
               *model.init_from);
  HEARTH_CHECK(
      model.vocab_size > 0, Config,
      "model.vocab_size is needed as long as no dataset of data.train exists (then it is the tokenizer's "
      "size): add --set model.vocab_size=N");
  return loaded;
}

// A pipeline rank: all ranks at its place differ in what data they see, not in what they do.
struct StagePlan {
  int rank = 0;  // of the job: the first one there
  std::vector<int> layers;
  bool embedding = false, head = false;
  double idle = 0;
  int peak_chunks = 0;
  MemoryEstimate memory;
  CommunicationVolume sent;
};

struct Plan {
  Mesh mesh;
  PipelineSchedule schedule;
  Simulation simulation;
  std::vector<StagePlan> stages;
};

Plan make_plan(const ExperimentConfig& config, const Mesh& mesh, const std::optional<ModelConfig>& teacher) {
  Plan plan{mesh, pipeline_schedule(config, mesh), {}, {}};
  plan.simulation = simulate(plan.schedule, pipeline_costs(config, plan.schedule));
  for (int stage = 0; stage < mesh.size(MeshAxis::Pp); ++stage) {
    Mesh::Coordinates place{};
    place[static_cast<size_t>(MeshAxis::Pp)] = stage;
    StagePlan s;
    s.rank = mesh.rank(place);
    const ModelPartition partition = model_partition(config, mesh, plan.schedule, s.rank);
    for (const ModelChunk& chunk : partition.chunks) s.layers.push_back(static_cast<int>(chunk.num_layers));
    s.embedding = partition.has_embedding();
    s.head = partition.has_head();
    const SimulatedRank& replayed = plan.simulation.ranks[static_cast<size_t>(stage)];
    s.idle = plan.simulation.total > 0 ? replayed.idle / plan.simulation.total : 0;
    s.peak_chunks = replayed.peak_activations;
    s.memory = estimate_memory(config, mesh, plan.schedule, s.rank, teacher ? &*teacher : nullptr);
    s.sent = communication_volume(config, mesh, plan.schedule, s.rank);
    plan.stages.push_back(std::move(s));
  }
  return plan;
}

Json sent_json(const CommunicationVolume& v) {
  return {{"tensor", v.tensor},       {"pipeline", v.pipeline}, {"context", v.context},
          {"gradients", v.gradients}, {"weights", v.weights},   {"replicated", v.replicated},
          {"total", v.total()}};
}

Json memory_json(const MemoryEstimate& m) {
  return {{"weights", m.weights}, {"gradients", m.gradients}, {"optimizer", m.optimizer},
          {"kept", m.kept},       {"working", m.working},     {"total", m.total()}};
}

Json mesh_json(const Mesh& mesh) {
  Json layout = Json::object();
  for (const MeshAxis axis : {MeshAxis::Pp, MeshAxis::Dp, MeshAxis::Cp, MeshAxis::Ep, MeshAxis::Tp})
    layout[std::string(name(axis))] = mesh.size(axis);
  layout["ranks"] = mesh.world_size();
  return layout;
}

Json plan_json(const ExperimentConfig& config, const Plan& plan) {
  Json layout = mesh_json(plan.mesh);
  layout["zero_stage"] = config.parallel.zero_stage;
  if (config.objective.teacher_ranks > 0) layout["teacher"] = mesh_json(teacher_mesh(config.objective));
  Json stages = Json::array();
  for (size_t stage = 0; stage < plan.stages.size(); ++stage) {
    const StagePlan& s = plan.stages[stage];
    stages.push_back({{"pipeline_rank", stage},
                      {"layers", s.layers},
                      {"embedding", s.embedding},
                      {"head", s.head},
                      {"idle_fraction", s.idle},
                      {"peak_activations", s.peak_chunks},
                      {"memory_bytes", memory_json(s.memory)},
                      {"bytes_sent_per_step", sent_json(s.sent)}});
  }
  return {{"layout", layout},
          {"schedule",
           {{"kind", config_name(plan.schedule.kind)},
            {"stages", plan.schedule.stages},
            {"chunks", plan.schedule.chunks},
            {"micro_batches", plan.schedule.micros}}},
          {"bubble_fraction", plan.simulation.bubble_fraction()},
          {"pipeline_ranks", stages}};
}

std::string mib(int64_t bytes) {
  return bytes == 0 ? "-" : fmt::format("{:.1f}", static_cast<double>(bytes) / (1 << 20));
}

void print_stages(const Plan& plan) {
  fmt::print("\n{:8} {:>14} {:>8} {:>9}\n", "pipeline", "layers", "idle", "in flight");
  for (size_t stage = 0; stage < plan.stages.size(); ++stage) {
    const StagePlan& s = plan.stages[stage];
    fmt::print("{:<8} {:>14} {:>7.2f}% {:>9}\n", stage,
               fmt::format("{}{}{}", s.embedding ? "E " : "", fmt::join(s.layers, " + "), s.head ? " H" : ""),
               100 * s.idle, s.peak_chunks);
  }
  fmt::print(
      "layers: per chunk, E with the embedding, H with head and loss; in flight: chunks held at most\n");
}

void print_memory(const Plan& plan) {
  fmt::print("\nMiB that a rank holds\n{:8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}\n", "pipeline",
             "weights", "gradients", "optimizer", "kept", "working", "total");
  for (size_t stage = 0; stage < plan.stages.size(); ++stage) {
    const MemoryEstimate& m = plan.stages[stage].memory;
    fmt::print("{:<8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}\n", stage, mib(m.weights), mib(m.gradients),
               mib(m.optimizer), mib(m.kept), mib(m.working), mib(m.total()));
  }
}

void print_sent(const Plan& plan) {
  fmt::print("\nMiB that a rank sends in a step\n{:8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}\n",
             "pipeline", "tp", "pp", "cp", "gradients", "weights", "other", "total");
  for (size_t stage = 0; stage < plan.stages.size(); ++stage) {
    const CommunicationVolume& v = plan.stages[stage].sent;
    fmt::print("{:<8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}\n", stage, mib(v.tensor),
               mib(v.pipeline), mib(v.context), mib(v.gradients), mib(v.weights), mib(v.replicated),
               mib(v.total()));
  }
  fmt::print(
      "gradients, weights: over data and context parallel ranks; other: norms, shared heads, tied tables\n");
}

void print_plan(const ExperimentConfig& config, const Plan& plan) {
  const PipelineSchedule& schedule = plan.schedule;
  fmt::print("layout        {}, zero_stage {}\n", describe(mesh_parts(config.objective, plan.mesh)),
             config.parallel.zero_stage);
  fmt::print("batch         {} samples of {} tokens = {} data-parallel ranks x {} micro-batches x {}\n",
             config.training.global_batch_size, config.data.seq_length, plan.mesh.size(MeshAxis::Dp),
             schedule.micros, config.training.micro_batch_size);
  fmt::print("schedule      {}, {} pipeline rank(s) with {} chunk(s) each\n", config_name(schedule.kind),
             schedule.stages, schedule.chunks);
  fmt::print(
      "bubble        {:.2f}% of the step: the schedule replayed, an action costs its flops, transfers are "
      "free\n",
      100 * plan.simulation.bubble_fraction());
  print_stages(plan);
  print_memory(plan);
  print_sent(plan);
}

std::string timeline(const PlanOptions& options, const Plan& plan) {
  if (options.timeline == "svg") return timeline_svg(plan.schedule, plan.simulation);
  return "F forward, B backward (of the input alone where a W follows), W weight gradient; then micro-batch" +
         std::string(plan.schedule.chunks > 1 ? ".chunk" : "") + ", dashes while it lasts; dots: idle\n" +
         timeline_text(plan.schedule, plan.simulation);
}

void run_plan(const PlanOptions& options, CommandContext& context) {
  HEARTH_CHECK(
      context.job.control->world_size() == 1, Usage,
      "`hearth plan` works on one rank, not on {}: start it without mpirun and give the size as --ranks",
      context.job.control->world_size());
  HEARTH_CHECK(options.output.empty() || !options.timeline.empty(), Usage,
               "--output is where the timeline goes: add --timeline text or --timeline svg");
  HEARTH_CHECK(!options.json || options.timeline.empty() || !options.output.empty(), Usage,
               "--json and --timeline cannot both have standard output: add --output FILE for the timeline");
  HEARTH_CHECK(options.timeline != "svg" || !options.output.empty(), Usage,
               "an SVG goes to a file: add --output FILE");
  Log log({.rank = 0, .world_size = 1});
  const LoadedConfig loaded = load_complete(options, context, log);
  const Plan plan =
      make_plan(loaded.config, require_layout(loaded, options.ranks), teacher_shape(loaded, context, log));
  if (options.json) {
    std::cout << plan_json(loaded.config, plan).dump() << "\n";
  } else {
    print_plan(loaded.config, plan);
  }
  if (options.timeline.empty()) return;
  const std::string picture = timeline(options, plan);
  if (options.output.empty()) {
    fmt::print("\n{}", picture);
  } else {
    context.fs.write_atomically(options.output, picture);
  }
}

}  // namespace

void add_plan_command(CLI::App& parent, CommandContext& context) {
  auto options = std::make_shared<PlanOptions>();
  CLI::App* command = parent.add_subcommand(
      "plan", "Print what a layout will do: stages, bubble, activations in flight, bytes sent, memory");
  command->add_option("CONFIG", options->config, "Experiment file (YAML)")->required();
  command->add_option("--ranks", options->ranks, "Ranks of the planned job")
      ->required()
      ->check(CLI::PositiveNumber);
  command->add_option("--set", options->overrides, "section.key=value, over the file; repeatable")
      ->allow_extra_args(false);
  command
      ->add_option("--timeline", options->timeline, "Draw the pipeline schedule: text, or svg (to --output)")
      ->check(CLI::IsMember({"text", "svg"}));
  command->add_option("--output", options->output, "File for the timeline");
  command->add_flag("--json", options->json, "One JSON object on standard output");
  command->callback([options, &context] { run_plan(*options, context); });
}

}  // namespace hearth
