// hearth bench train | kernels | collectives: what this machine does with Hearth, measured in one process.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/quantile.h"
#include "kernels/bench/kernels_bench.h"
#include "launch/build_info.h"
#include "launch/command.h"
#include "launch/commands/commands.h"
#include "launch/commands/experiment.h"
#include "launch/config_parser.h"
#include "launch/run_config.h"
#include "trainer/bench/benchmark.h"
#include "trainer/bench/random_tensors.h"
#include "trainer/bench/roofline.h"
#include "trainer/device.h"
#include "trainer/model/model_config.h"
#include "trainer/parallel_layout.h"

namespace hearth {
namespace {

struct BenchTrainOptions {
  std::string preset, teacher, device = "auto";
  int64_t seq = 4096, micro_batch = 1, accumulation = 1;
  BenchmarkOptions run;
  double roofline_seconds = 1.0;
  std::vector<std::string> overrides;
  bool json = false;
};

// A preset by its file, or by its name where Hearth's own folder of shapes is found.
std::string preset_file(FileSystem& fs, const std::string& preset) {
  if (fs.exists(preset)) return preset;
  const std::string named = "configs/models/" + preset + ".yaml";
  HEARTH_CHECK(fs.exists(named), Config,
               "there is no model shape '{}': neither a file of that name nor {} exists here", preset, named);
  return named;
}

LoadedConfig bench_config(const BenchTrainOptions& o, CommandContext& context, int64_t data_parallel_size) {
  std::vector<std::string> settings = {
      fmt::format("model.preset={}", preset_file(context.fs, o.preset)),
      fmt::format("data.seq_length={}", o.seq),
      "data.reset_attention_mask=" + std::string(o.run.mean_document_length > 0 ? "true" : "false"),
      "model.init_from=random",  // adapters ask for weights; nothing is read: they are drawn
      "training.train_iters=1000000",
      fmt::format("training.micro_batch_size={}", o.micro_batch),
      fmt::format("training.global_batch_size={}", o.micro_batch * o.accumulation * data_parallel_size)};
  if (!o.teacher.empty())
    settings.insert(settings.end(),
                    {"objective.kind=distill", "objective.teacher=random", "objective.kd_alpha=1.0"});
  settings.insert(settings.end(), o.overrides.begin(), o.overrides.end());
  // The key is required of an experiment; nothing is read from there.
  return parse_experiment(context.fs, "data: {train: [{path: none}]}\n", "hearth bench train", settings);
}

struct Report {
  const ExperimentConfig& config;
  const BenchmarkResult& result;
  std::optional<Roofline> roofline;
  std::string device, layout;
  double peak_flops = 0;
  int64_t ranks = 1;

  // The usual count of operations is of a model that is trained whole, and alone.
  bool counts_flops() const { return config.objective.kind == "pretrain" && config.objective.lora_rank == 0; }
  double tokens() const {
    return static_cast<double>(config.training.global_batch_size * config.data.seq_length);
  }
  double median() const { return quantile(result.step_seconds, 0.5); }
  double rate(double seconds) const { return tokens() / seconds; }
  double flops(double per_token) const { return per_token * rate(median()) / static_cast<double>(ranks); }
};

std::string precision_text(const PrecisionConfig& p) {
  return fmt::format("{}; main params {}, main grads {}, moments {} / {}", p.dtype, p.main_params_dtype,
                     p.main_grads_dtype, p.exp_avg_dtype, p.exp_avg_sq_dtype);
}

nlohmann::ordered_json to_json(const Report& r) {
  const ModelFlops flops = model_flops(r.config.model, r.config.data.seq_length);
  const double causal = r.flops(flops.per_token_causal), full = r.flops(flops.per_token_full);
  nlohmann::ordered_json json{
      {"build", build_id()},
      {"device", r.device},
      {"layout", r.layout},
      {"ranks", r.ranks},
      {"parameters", parameter_count(r.config.model)},
      {"precision", precision_text(r.config.precision)},
      {"seq_length", r.config.data.seq_length},
      {"micro_batch_size", r.config.training.micro_batch_size},
      {"global_batch_size", r.config.training.global_batch_size},
      {"tokens_per_s", r.rate(r.median())},
      {"tokens_per_s_p5", r.rate(quantile(r.result.step_seconds, 0.95))},
      {"tokens_per_s_p95", r.rate(quantile(r.result.step_seconds, 0.05))},
      {"tokens_per_s_per_rank", r.rate(r.median()) / static_cast<double>(r.ranks)},
      {"step_ms", 1e3 * r.median()},
      {"loss", r.result.loss},
      {"peak_memory_gib", std::ldexp(static_cast<double>(r.result.peak_memory_bytes), -30)},
      {"reserved_memory_gib", std::ldexp(static_cast<double>(r.result.reserved_memory_bytes), -30)},
      {"allocator_calls", r.result.allocations}};
  if (r.counts_flops()) {
    json["tflops"] = causal / 1e12;
    json["tflops_full_attention"] = full / 1e12;
  }
  if (r.counts_flops() && r.peak_flops > 0) {
    json["mfu_percent"] = 100 * causal / r.peak_flops;
    json["mfu_full_attention_percent"] = 100 * full / r.peak_flops;
  }
  if (const auto& d = r.result.device)
    json["device_readings"] = {{"sm_clock_mhz", d->sm_clock_mhz},
                               {"max_sm_clock_mhz", d->max_sm_clock_mhz},
                               {"power_watts", d->power_watts},
                               {"power_limit_watts", d->power_limit_watts}};
  for (const auto& [kind, seconds] : r.result.kernels.by_kind) json["kernel_ms"][kind] = 1e3 * seconds;
  if (!r.result.kernels.by_kind.empty()) json["device_idle_ms"] = 1e3 * r.result.kernels.idle;
  for (const auto& [name, seconds] : r.result.kernels.by_name)
    json["kernel_ms_by_name"][name] = 1e3 * seconds;
  for (const KindOverlap& row : r.result.kernels.communication)
    json["communication"][row.kind] = {{"calls", row.calls},
                                       {"ms", static_cast<double>(row.total_ns) * 1e-6},
                                       {"covered_percent", 100 * row.share()},
                                       {"exposed_ms", static_cast<double>(row.exposed_ns) * 1e-6}};
  if (const auto& f = r.roofline)
    json["roofline"] = {{"copy_gb_per_s", f->copy_bytes_per_second / 1e9},
                        {"gemm_tflops", f->gemm_flops_per_second / 1e12},
                        {"attention_tflops", f->attention_flops_per_second / 1e12},
                        {"gemm_ms", 1e3 * f->gemm_seconds},
                        {"attention_ms", 1e3 * f->attention_seconds},
                        {"bytes_ms", 1e3 * f->bytes_seconds},
                        {"step_ms", 1e3 * f->step_seconds()},
                        {"reached_percent", 100 * f->step_seconds() / r.median()}};
  return json;
}

void print_text(const Report& r) {
  const ModelFlops flops = model_flops(r.config.model, r.config.data.seq_length);
  const double causal = r.flops(flops.per_token_causal), full = r.flops(flops.per_token_full);
  const auto mfu = [&](double rate) {
    return r.peak_flops > 0 ? fmt::format(" ({:.1f}%)", 100 * rate / r.peak_flops) : std::string();
  };
  const TrainingConfig& t = r.config.training;
  fmt::print("device      {}, {}\n", r.device, r.layout);
  fmt::print("model       {} parameters; {}\n", parameter_count(r.config.model),
             precision_text(r.config.precision));
  fmt::print("batch       {} samples of {} tokens a step, micro-batches of {}\n", t.global_batch_size,
             r.config.data.seq_length, t.micro_batch_size);
  fmt::print("tokens/s    {:.0f}   (p5 {:.0f}, p95 {:.0f} of {} steps; {:.2f} ms a step)\n",
             r.rate(r.median()), r.rate(quantile(r.result.step_seconds, 0.95)),
             r.rate(quantile(r.result.step_seconds, 0.05)), r.result.step_seconds.size(), 1e3 * r.median());
  if (r.ranks > 1)
    fmt::print("            {:.0f} on each of {} ranks\n", r.rate(r.median()) / static_cast<double>(r.ranks),
               r.ranks);
  if (r.counts_flops())
    fmt::print("TFLOP/s     {:.1f}{} with causal attention, {:.1f}{} counted full\n", causal / 1e12,
               mfu(causal), full / 1e12, mfu(full));
  fmt::print(
      "memory      {:.2f} GiB in tensors at most, {:.2f} GiB taken from the device; {} calls of its "
      "allocator in the measured steps\n",
      std::ldexp(static_cast<double>(r.result.peak_memory_bytes), -30),
      std::ldexp(static_cast<double>(r.result.reserved_memory_bytes), -30), r.result.allocations);
  if (const auto& d = r.result.device)
    fmt::print("clock       {:.0f} of {:.0f} MHz, {:.0f} of {:.0f} W on average\n", d->sm_clock_mhz,
               d->max_sm_clock_mhz, d->power_watts, d->power_limit_watts);
  const double kernels = r.result.kernels.total();
  for (const auto& [kind, seconds] : r.result.kernels.by_kind)
    fmt::print("{:<11} {:8.2f} ms  {:4.1f}%  {}\n",
               &kind == &r.result.kernels.by_kind.front().first ? "kernels" : "", 1e3 * seconds,
               100 * seconds / kernels, kind);
  if (kernels > 0) fmt::print("            {:8.2f} ms         idle\n", 1e3 * r.result.kernels.idle);
  for (const KindOverlap& row : r.result.kernels.communication)
    fmt::print("{:<11} {:8.2f} ms  {:4.1f}% covered by compute, {:.2f} ms exposed; {} calls, {}\n",
               &row == &r.result.kernels.communication.front() ? "exchange" : "",
               static_cast<double>(row.total_ns) * 1e-6, 100 * row.share(),
               static_cast<double>(row.exposed_ns) * 1e-6, row.calls, row.kind);
  if (const auto& f = r.roofline)
    fmt::print(
        "roofline    {:.2f} ms = GEMM {:.2f} at {:.0f} TFLOP/s + attention {:.2f} at {:.0f} TFLOP/s + bytes "
        "{:.2f} at "
        "{:.0f} GB/s; reached {:.1f}%\n",
        1e3 * f->step_seconds(), 1e3 * f->gemm_seconds, f->gemm_flops_per_second / 1e12,
        1e3 * f->attention_seconds, f->attention_flops_per_second / 1e12, 1e3 * f->bytes_seconds,
        f->copy_bytes_per_second / 1e9, 100 * f->step_seconds() / r.median());
}

// As a training opens one, without a file: the values are cheap where those of a new model take a minute for
// 8B.
ModelBundle random_model(const ModelConfig& config, uint64_t seed) {
  ModelBundle model;
  model.config = config;
  model.tensors = std::make_unique<RandomTensors>(config, seed);
  model.stored_dtype = DType::BF16;
  model.origin = "random weights";
  return model;
}

std::optional<ModelBundle> random_teacher(const BenchTrainOptions& options, CommandContext& context) {
  if (options.teacher.empty()) return std::nullopt;
  BenchTrainOptions shape = options;
  shape.preset = std::exchange(shape.teacher, "");
  shape.overrides.clear();
  return random_model(bench_config(shape, context, 1).config.model, /*seed=*/1);
}

void run_bench_train(const BenchTrainOptions& options, CommandContext& context) {
  ControlPlane& control = *context.job.control;
  Log log({.rank = control.rank(), .world_size = control.world_size()});
  const LoadedConfig first = bench_config(options, context, 1);
  const std::string& kind = first.config.objective.kind;
  HEARTH_CHECK(kind == (options.teacher.empty() ? "pretrain" : "distill"), Config,
               "`hearth bench train` has random tokens and weights only: objective.kind is pretrain there "
               "(with adapters or "
               "without), and distill with --teacher; not {}",
               kind);
  const ParallelConfig& p = first.config.parallel;
  const auto model_ranks =
      p.tensor_model_parallel_size * p.pipeline_model_parallel_size * p.context_parallel_size;
  const LoadedConfig loaded =
      bench_config(options, context, std::max<int64_t>(1, control.world_size() / model_ranks));
  const ExperimentConfig& config = loaded.config;
  const Mesh mesh = require_layout(loaded, control.world_size());
  const ComputePlace place = take_device(options.device, mesh, context);
  share_device(context, place.device, log);
  if (place.device.is_cpu()) count_cpu_memory();
  set_deterministic(config.training.deterministic_mode);
  const std::optional<ModelBundle> teacher = random_teacher(options, context);
  const ModelBundle start = random_model(config.model, static_cast<uint64_t>(config.training.seed));
  BenchmarkResult result;
  {
    ParallelGroups groups = make_parallel_groups(context.job, config, mesh, place.device);
    result = benchmark_training(config, groups, place.device, options.run,
                                {.init_from = &start, .teacher = teacher ? &*teacher : nullptr}, log);
  }
  // The times are rank 0's (each step ends with a sum over all ranks), the memory is the fullest rank's.
  result.peak_memory_bytes = control.all_reduce_max(result.peak_memory_bytes, "bench.memory");
  result.reserved_memory_bytes = control.all_reduce_max(result.reserved_memory_bytes, "bench.memory");
  result.allocations = control.all_reduce_max(result.allocations, "bench.allocations");
  release_cached_memory(place.device);
  Report report{.config = config,
                .result = result,
                .roofline = {},
                .device = device_name(place.device),
                .layout = mesh.describe(),
                .peak_flops = peak_flops(place.device),
                .ranks = control.world_size()};
  if (options.roofline_seconds > 0 && model_ranks == 1 && report.counts_flops())
    report.roofline = measure_roofline(config, options.accumulation, place.device, options.roofline_seconds);
  if (control.rank() != 0) return;
  if (options.json) {
    std::cout << to_json(report).dump() << "\n";
  } else {
    print_text(report);
  }
}

void add_bench_train(CLI::App& bench, CommandContext& context) {
  auto options = std::make_shared<BenchTrainOptions>();
  CLI::App* command = bench.add_subcommand(
      "train",
      "Training steps on random tokens: tokens/s, MFU, memory, share of each kind of work, roofline");
  command->add_option("--preset", options->preset, "Model shape: a file, or a name of configs/models/")
      ->required();
  command->add_option("--teacher", options->teacher,
                      "Shape of a teacher with random weights: the step is one of distillation");
  command->add_option("--seq", options->seq, "Tokens of a sample")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--mbs", options->micro_batch, "Samples of a micro-batch")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--accum", options->accumulation, "Micro-batches of a step on each data-parallel rank")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--steps", options->run.steps, "Measured steps")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--warm-up", options->run.warm_up, "Steps before them")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command
      ->add_option(
          "--documents", options->run.mean_document_length,
          "Mean length of the documents in a sample, whose borders attention does not cross; 0: one fills it")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  command
      ->add_option("--roofline", options->roofline_seconds,
                   "Seconds of each of its four measurements; 0: none")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  command->add_option("--set", options->overrides, "section.key=value of the experiment; repeatable")
      ->allow_extra_args(false);
  command->add_option("--device", options->device, "auto, cpu or cuda")->capture_default_str();
  command->add_flag("--json", options->json, "One JSON object on standard output");
  command->callback([options, &context] { run_bench_train(*options, context); });
}

void add_bench_kernels(CLI::App& bench, CommandContext& context) {
  struct Options {
    std::string filter;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = bench.add_subcommand(
      "kernels", "Every kernel at training shapes: time, share of the copy rate, ratio to LibTorch's own");
  command->add_option("FILTER", options->filter, "Only operations whose name contains this");
  command->callback([options, &context] {
    HEARTH_CHECK(context.job.control->world_size() == 1, Usage,
                 "`hearth bench kernels` measures one GPU, on one rank, not on {}",
                 context.job.control->world_size());
    kernels::bench_kernels(options->filter);
  });
}

}  // namespace

void add_bench_command(CLI::App& parent, CommandContext& context) {
  CLI::App* bench =
      parent.add_subcommand("bench", "Measure this machine: training steps, kernels, collectives");
  bench->require_subcommand(1);
  add_bench_train(*bench, context);
  add_bench_kernels(*bench, context);
  add_bench_collectives_command(*bench, context);
}

}  // namespace hearth
