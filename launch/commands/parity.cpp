// hearth parity CONFIG: one training step both ways on the user's own configuration, and the first thing that
// differs.
#include "trainer/parity.h"

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "launch/command.h"
#include "launch/commands/commands.h"
#include "launch/commands/experiment.h"
#include "launch/commands/teacher_ranks.h"
#include "launch/run_config.h"
#include "trainer/parallel_layout.h"

namespace hearth {
namespace {

struct ParityOptions {
  std::string config, device = "auto", save;
  std::vector<std::string> overrides, a, b;
  double tolerance = 0;
  bool json = false, all = false;
};

// One side, ready to run. What both must share for a comparison to mean anything is checked by
// require_comparable.
struct Side {
  LoadedConfig loaded;
  ExperimentData data;
  std::unique_ptr<ModelBundle> weights, teacher;
  std::unique_ptr<TeacherCache> teacher_cache;
  Mesh mesh;
};

Side open_side(const ParityOptions& options, const std::vector<std::string>& own, CommandContext& context,
               Log& log) {
  std::vector<std::string> overrides = options.overrides;
  overrides.insert(overrides.end(), own.begin(), own.end());
  Side side{load_experiment(context.fs, options.config, overrides), {}, nullptr, nullptr, nullptr, Mesh()};
  side.data = open_data(context.fs, side.loaded.config, MissingData::Refuse);
  auto bundle = complete_config(side.loaded, side.data, context, log);
  side.mesh = require_layout(side.loaded, context.job.control->world_size());
  require_one_tokenizer(side.data);
  require_data_of_objective(side.loaded.config, side.data);
  side.weights = initial_weights(side.loaded, side.data, std::move(bundle), context, log);
  side.teacher = open_teacher(side.loaded, side.data, context, log);
  side.teacher_cache = open_teacher_cache(side.loaded, side.data, context);
  return side;
}

// Switches that change no shape may differ: what they change is what parity then names.
bool same_parameters(const ModelConfig& a, const ModelConfig& b) {
  const auto x = parameter_specs(a), y = parameter_specs(b);
  return std::equal(
      x.begin(), x.end(), y.begin(), y.end(),
      [](const ParameterSpec& p, const ParameterSpec& q) { return p.name == q.name && p.shape == q.shape; });
}

void require_comparable(const Side& a, const Side& b) {
  const ExperimentConfig &x = a.loaded.config, &y = b.loaded.config;
  HEARTH_REQUIRE(
      x.training.global_batch_size == y.training.global_batch_size &&
          x.data.seq_length == y.data.seq_length && a.data.digest == b.data.digest,
      "--a and --b have different batches or data: parity compares the same samples through the same model");
  HEARTH_REQUIRE(x.objective.teacher_ranks == y.objective.teacher_ranks,
                 "--a and --b set {} and {} ranks apart for the teacher: the same ranks compare both sides",
                 x.objective.teacher_ranks, y.objective.teacher_ranks);
  HEARTH_REQUIRE(
      same_parameters(x.model, y.model) && x.model.num_attention_heads == y.model.num_attention_heads,
      "--a and --b have different shapes: parity compares the same parameters");
}

std::vector<Sample> first_samples(Side& side) {
  const ExperimentConfig& c = side.loaded.config;
  SampleStream stream(
      std::move(side.data.train),
      {.seq_length = c.data.seq_length,
       .seed = static_cast<uint64_t>(c.training.seed),
       .border_targets = c.data.reset_attention_mask ? BorderTargets::Skip : BorderTargets::Count});
  std::vector<Sample> samples;
  for (int64_t i = 0; i < c.training.global_batch_size; ++i) samples.push_back(stream.get(i));
  return samples;
}

nlohmann::ordered_json to_json(const ParityDifference& d) {
  nlohmann::ordered_json json{{"name", d.name}, {"difference", d.difference}};
  if (!d.where.empty()) json["where"] = d.where;
  return json;
}

void print_text(const ParitySide& a, const ParitySide& b, const std::vector<ParityDifference>& differences,
                const ParityDifference* first, const ParityDifference& worst, double tolerance, bool all) {
  const auto line = [](const ParityDifference& d) {
    return fmt::format("{}: {:.2e}{}", d.name, d.difference, d.where.empty() ? "" : " at " + d.where);
  };
  fmt::print("a         {}  loss {:.9g}  grad_norm {:.9g}\nb         {}  loss {:.9g}  grad_norm {:.9g}\n",
             a.layout, a.loss, a.grad_norm, b.layout, b.loss, b.grad_norm);
  if (all)
    for (const auto& d : differences) fmt::print("          {}\n", line(d));
  fmt::print("compared  {} tensors and numbers, allowed {:.1e}\nlargest   {}\n", differences.size(),
             tolerance, line(worst));
  fmt::print("{}\n", first == nullptr ? "same" : "differs   first in " + line(*first));
}

// On the ranks that ran both sides, which are all of `context`.
void compare(const ParityOptions& options, const Side& a, const Side& b, const ParitySide& first_side,
             const ParitySide& second_side, at::Device device, CommandContext& context) {
  const bool is_root = context.job.control->rank() == 0;
  if (!options.save.empty()) {
    if (is_root) context.fs.create_directories(options.save);
    const auto save = [&](const char* name, const ParitySide& side, const Side& of) {
      save_gradients(context.job, context.fs, options.save + "/" + name, side, of.loaded.config, device);
    };
    save("a.safetensors", first_side, a);
    save("b.safetensors", second_side, b);
  }
  const auto differences = compare_sides(context.job, first_side, second_side, a.loaded.config, device);
  const double tolerance = options.tolerance > 0 ? options.tolerance
                                                 : std::max(parity_tolerance(a.loaded.config.precision),
                                                            parity_tolerance(b.loaded.config.precision));
  const ParityDifference* first = nullptr;
  const ParityDifference* worst = &differences.front();
  for (const ParityDifference& d : differences) {
    if (first == nullptr && !(d.difference <= tolerance)) first = &d;
    if (!(d.difference <= worst->difference) && !std::isnan(worst->difference)) worst = &d;
  }
  if (first != nullptr) context.exit_code = exit_code(ErrorKind::Numeric);
  if (!is_root) return;
  if (!options.json)
    return print_text(first_side, second_side, differences, first, *worst, tolerance, options.all);
  nlohmann::ordered_json json{
      {"same", first == nullptr}, {"tolerance", tolerance}, {"largest", to_json(*worst)}};
  if (first != nullptr) json["first"] = to_json(*first);
  for (const ParityDifference& d : differences) json["differences"].push_back(to_json(d));
  std::cout << json.dump() << "\n";
}

void run_parity(const ParityOptions& options, CommandContext& context) {
  ControlPlane& control = *context.job.control;
  Log log({.rank = control.rank(), .world_size = control.world_size()});
  Side a = open_side(options, options.a, context, log), b = open_side(options, options.b, context, log);
  require_comparable(a, b);
  control.set_timeout(
      std::max(a.loaded.config.parallel.collective_timeout_s, b.loaded.config.parallel.collective_timeout_s));
  const Mesh& deeper = a.mesh.size(MeshAxis::Pp) > b.mesh.size(MeshAxis::Pp) ? a.mesh : b.mesh;
  const at::Device device =
      take_device(options.device, mesh_parts(a.loaded.config.objective, deeper), context).device;
  share_device(context, device, log);
  const auto samples = first_samples(a);
  JobPart part(context, a.loaded.config.objective.teacher_ranks);
  const auto run = [&](Side& side) {
    ParitySide result;
    with_teacher(part, side.loaded.config, side.mesh, side.teacher.get(), device, log,
                 [&](TeacherClient* teacher_client) {
                   result =
                       run_parity_side(part.context().job, side.loaded.config, side.mesh, device, samples,
                                       {.init_from = side.weights.get(),
                                        .teacher = side.teacher.get(),
                                        .teacher_cache = side.teacher_cache.get(),
                                        .teacher_client = teacher_client});
                 });
    return result;
  };
  const ParitySide first_side = run(a), second_side = run(b);
  if (!part.serves()) compare(options, a, b, first_side, second_side, device, part.context());
}

}  // namespace

void add_parity_command(CLI::App& parent, CommandContext& context) {
  auto options = std::make_shared<ParityOptions>();
  CLI::App* command = parent.add_subcommand("parity",
                                            "One training step under two layouts; prints the first "
                                            "activation or gradient that differs (exit code 6)");
  command->add_option("CONFIG", options->config, "Experiment file (YAML)")->required();
  command->add_option("--set", options->overrides, "section.key=value for both sides; repeatable")
      ->allow_extra_args(false);
  command->add_option("--a", options->a, "section.key=value for side a; repeatable")->allow_extra_args(false);
  command->add_option("--b", options->b, "section.key=value for side b; repeatable")->allow_extra_args(false);
  command
      ->add_option("--tolerance", options->tolerance,
                   "Relative difference allowed (default: 1e-5 in fp32, 0.03 in bf16)")
      ->check(CLI::PositiveNumber);
  command->add_option("--device", options->device, "auto, cpu or cuda")->capture_default_str();
  command->add_option(
      "--save", options->save,
      "Folder for a.safetensors and b.safetensors: loss and mean gradients of the sides, to compare "
      "with another program");
  command->add_flag("--all", options->all, "Print every difference");
  command->add_flag("--json", options->json, "One JSON object on standard output");
  command->callback([options, &context] { run_parity(*options, context); });
}

}  // namespace hearth
