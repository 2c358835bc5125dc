// hearth train CONFIG: reads the experiment file, joins the ranks, and runs trainer/trainer.h to the end.
#include <fmt/core.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "launch/build_info.h"
#include "launch/command.h"
#include "launch/commands/commands.h"
#include "launch/commands/experiment.h"
#include "launch/commands/teacher_ranks.h"
#include "launch/config_parser.h"
#include "launch/error_report.h"
#include "launch/run_config.h"
#include "launch/signals.h"
#include "parallel/agreement.h"
#include "parallel/binding.h"
#include "parallel/placement.h"
#include "trainer/checkpoint/find_checkpoint.h"
#include "trainer/checkpoint/resume_contract.h"
#include "trainer/checkpoint/retention.h"
#include "trainer/checkpoint/run_lock.h"
#include "trainer/interchange/model_source.h"
#include "trainer/memory_estimate.h"
#include "trainer/parallel_layout.h"
#include "trainer/trainer.h"

namespace hearth {
namespace {

struct TrainOptions {
  std::string config, resume = "auto", device = "auto";
  std::vector<std::string> overrides, confirm;
  bool dry_run = false, print_config = false, take_over = false;
};

std::string gib(int64_t bytes) {
  return fmt::format("{:.3f} GiB", static_cast<double>(bytes) / (1 << 30));
}

void print_dry_run(const LoadedConfig& loaded, const Mesh& mesh, const ExperimentData& data,
                   const std::optional<ModelConfig>& teacher) {
  const ExperimentConfig& c = loaded.config;
  const int dp = mesh.size(MeshAxis::Dp);
  const auto tokens = c.training.train_iters * c.training.global_batch_size * c.data.seq_length;
  const auto [heaviest, memory] = heaviest_rank(c, mesh, teacher ? &*teacher : nullptr);
  fmt::print("model         {}  hidden {} x {} layers, heads {} / {}, head_dim {}, ffn {}, vocabulary {}{}\n",
             c.model.family, c.model.hidden_size, c.model.num_hidden_layers, c.model.num_attention_heads,
             c.model.kv_heads(), c.model.head_width(), c.model.intermediate_size, c.model.vocab_size,
             c.model.tie_word_embeddings ? ", tied" : "");
  fmt::print("parameters    {}\n", parameter_count(c.model));
  if (const LoraShape lora = c.objective.lora(); lora.rank > 0)
    fmt::print("trained       {} in adapters of rank {}\n", lora_parameter_count(c.model, lora), lora.rank);
  fmt::print("layout        {}, zero_stage {}\n", describe(mesh_parts(c.objective, mesh)),
             c.parallel.zero_stage);
  fmt::print("batch         {} samples of {} tokens = {} ranks x {} micro-batches x {}\n",
             c.training.global_batch_size, c.data.seq_length, dp,
             c.training.global_batch_size / (dp * c.training.micro_batch_size), c.training.micro_batch_size);
  fmt::print("tokens        {} planned in {} steps\n", tokens, c.training.train_iters);
  fmt::print("data          {}\n", data.missing.empty() ? data.text : data.missing + " does not exist yet");
  fmt::print(
      "memory        {} at most, on rank {} = weights {} + gradients {} + optimizer {} + activations {} ({} "
      "kept for "
      "backward, {} in use)\n",
      gib(memory.total()), heaviest, gib(memory.weights), gib(memory.gradients), gib(memory.optimizer),
      gib(memory.activations()), gib(memory.kept), gib(memory.working));
}

void log_places(CommandContext& context, const std::vector<MeshPart>& parts, const ComputePlace& mine,
                Log& log) {
  const auto ordinal = mine.device.is_cuda() ? std::optional<int>(mine.device.index()) : std::nullopt;
  const auto places = gather_places(*context.job.control, ordinal);
  const auto coordinates = describe_coordinates(parts);
  for (const RankPlace& place : places)
    log.info("event=rank_place {} threads={} at=\"{}\"", describe(place), mine.threads,
             coordinates[static_cast<size_t>(place.rank)]);
  for (const std::string& warning : placement_warnings(parts, places))
    log.warning("event=placement: {}", warning);
}

// Rank 0 writes a nonce into the run folder; every rank reads it back, so that one on another file system is
// named.
void require_agreement_on_run(CommandContext& context, const LoadedConfig& loaded,
                              const ExperimentData& data) {
  const std::string file = loaded.config.checkpoint.save + "/.nonce";
  if (context.job.control->rank() == 0)
    context.fs.write_atomically(file, build_id() + std::to_string(::getpid()));
  context.job.control->barrier("start.nonce");
  const std::string seen = context.fs.exists(file) ? context.fs.read_text(file) : "missing";
  require_agreement(*context.job.control,
                    {{"build id", build_id()},
                     {"config hash", experiment_hash(loaded.config)},
                     {"dataset digest", data.digest},
                     {"tokenizer digest", data.train.front().dataset->tokenizer_digest()},
                     {"run folder", seen}});
  context.job.control->barrier("start.agreed");
  if (context.job.control->rank() == 0) context.fs.remove(file);
}

// A page that names the missing rank, on stderr and in the run folder. Nothing here may die with run_train: a
// job can hang while it ends.
void explain_hangs(CommandContext& context, const std::string& save, std::vector<std::string> places) {
  HangOptions options{.folder = save + "/.hang", .places = std::move(places), .print = {}, .told_to_end = {}};
  if (context.job.control->rank() == 0)
    context.fs.remove_all(save + "/log/hang_report.txt");  // of an earlier attempt
  options.print = [&fs = context.fs, file = save + "/log/hang_report.txt"](std::string_view page) {
    std::cerr << page << std::flush;
    fs.write_atomically(file, page);
  };
  options.told_to_end = [] { return stop_signal() == SIGTERM; };
  watch_for_hangs(context.job, std::move(options), [&environment = context.environment](const Error& error) {
    std::cerr << error_report(error, environment) << std::flush;
  });
}

// --resume never over an existing run: its checkpoints stay, under another name.
void set_checkpoints_aside(FileSystem& fs, const std::string& run_folder, int64_t attempt, Log& log) {
  if (list_checkpoints(fs, run_folder).empty()) return;
  const std::string aside = fmt::format("{}/checkpoints.before_attempt_{}", run_folder, attempt);
  fs.rename(run_folder + "/checkpoints", aside);
  log.warning("event=fresh_start old_checkpoints={}: --resume never", aside);
}

std::unique_ptr<CheckpointReader> checkpoint_to_resume(const TrainOptions& options,
                                                       const CheckpointConfig& config,
                                                       CommandContext& context, Log& log) {
  if (options.resume == "never") return nullptr;
  const auto required = [&](const std::string& path) {
    auto found = find_checkpoint(context.fs, *context.job.control, log, path);
    HEARTH_CHECK(found != nullptr, Corrupt, "{} holds no checkpoint to continue from", path);
    return found;
  };
  if (options.resume != "auto") return required(options.resume);
  if (auto own = find_checkpoint(context.fs, *context.job.control, log, config.save)) return own;
  return config.load ? required(*config.load) : nullptr;
}

// The configuration that a checkpoint was written with, as flat keys (classes are not stored: the new run's
// count).
std::vector<FlatKey> stored_config(const nlohmann::json& state) {
  std::vector<FlatKey> keys;
  const auto config = state.value("config", nlohmann::json::object());
  for (const auto& [key, entry] : config.items())
    keys.push_back({.key = key, .value = entry.at("value").dump()});
  return keys;
}

void check_resume(const CheckpointReader& checkpoint, const TrainOptions& options, const LoadedConfig& loaded,
                  const ExperimentData& data, const std::string& mesh, Log& log) {
  const auto state = nlohmann::json::parse(checkpoint.state_json());
  const auto& identity = checkpoint.manifest().identity;
  const auto flat = [](std::vector<FlatKey> keys) {  // one spelling of every value on both sides
    for (auto& key : keys) {
      const auto value = nlohmann::json::parse(key.value, nullptr, false);
      if (!value.is_discarded()) key.value = value.dump();
    }
    return keys;
  };
  const RunDescription before{flat(stored_config(state)), identity.data_fingerprint, state.value("data", ""),
                              identity.tokenizer_digest, identity.mesh};
  const RunDescription now{flat(flatten_config(loaded.config)), data.digest, data.text,
                           data.train.front().dataset->tokenizer_digest(), mesh};
  const auto changes = compare_for_resume(before, now, options.confirm);
  if (!changes.empty())
    log.info("event=resume_changes checkpoint={}\n{}", checkpoint.directory(), describe_changes(changes));
  require_resumable(changes, checkpoint.directory());
}

nlohmann::json build_json() {
  const BuildInfo& build = build_info();
  return {{"version", build.version},
          {"git_commit", build.git_commit},
          {"compiler", build.compiler},
          {"build_type", build.build_type},
          {"cuda", build.cuda}};
}

// What the whole job has before its ranks begin to train.
struct StartedRun {
  at::Device device = at::kCPU;
  std::unique_ptr<RunLock> lock;  // on rank 0
  int64_t attempt = 0;
};

StartedRun start_run(const TrainOptions& options, const LoadedConfig& loaded, const Mesh& mesh,
                     const ExperimentData& data, CommandContext& context, Log& log) {
  ControlPlane& control = *context.job.control;
  const std::string& save = loaded.config.checkpoint.save;
  const auto parts = mesh_parts(loaded.config.objective, mesh);
  StartedRun run;
  const ComputePlace place = take_device(options.device, parts, context);
  run.device = place.device;
  if (run.device.is_cpu()) count_cpu_memory();
  if (control.rank() == 0) {
    context.fs.create_directories(save + "/log");
    context.fs.create_directories(save + "/checkpoints");
    run.lock = RunLock::acquire(context.fs, log, save, this_process(context.environment.slurm_job_id),
                                options.take_over ? TakeOver::Force : TakeOver::DeadOnly);
  }
  run.attempt = control.all_reduce_max(run.lock ? run.lock->attempt() : 0, "start.attempt");
  log.open_file(fmt::format("{}/log/rank_{:04d}.log", save, control.rank()));
  log_places(context, parts, place, log);
  require_agreement_on_run(context, loaded, data);
  explain_hangs(context, save, describe_coordinates(parts));
  share_device(context, run.device, log);
  return run;
}

// On the ranks that train, which are all of `context`.
void train(const TrainOptions& options, LoadedConfig& loaded, const Mesh& mesh, ExperimentData data,
           std::unique_ptr<ModelBundle> init_from, const ModelBundle* teacher, TeacherClient* teacher_client,
           const StartedRun& run, CommandContext& context, Log& log) {
  ControlPlane& control = *context.job.control;
  const std::string& save = loaded.config.checkpoint.save;
  const at::Device device = run.device;
  ParallelGroups groups = make_parallel_groups(context.job, loaded.config, mesh, device);
  log.info(
      "event=start build=\"{}\" launcher=\"{}\" backend={} device=\"{}\" layout=\"{}\" parameters={} "
      "data=\"{}\"",
      build_id(), context.job.launcher, groups.everyone().backend(), device_name(device),
      describe(mesh_parts(loaded.config.objective, mesh)), parameter_count(loaded.config.model), data.text);

  const auto checkpoint = checkpoint_to_resume(options, loaded.config.checkpoint, context, log);
  if (checkpoint) check_resume(*checkpoint, options, loaded, data, mesh.describe(), log);
  const ObjectiveConfig& objective = loaded.config.objective;
  const bool needs_base = objective.lora_rank > 0 || objective.kind == "dpo";  // at a resume, too
  const auto weights =
      checkpoint && !needs_base ? nullptr : initial_weights(loaded, data, std::move(init_from), context, log);
  const auto teacher_cache = open_teacher_cache(loaded, data, context);
  if (control.rank() == 0) {
    if (options.resume == "never") set_checkpoints_aside(context.fs, save, run.attempt, log);
    // Going on from a named checkpoint: newer ones belong to another history and would be found first next
    // time.
    if (checkpoint && options.resume != "auto")
      retire_newer_checkpoints(context.fs, log, save, checkpoint->step(), run.attempt);
    context.fs.write_atomically(save + "/config.yaml", resolved_yaml(loaded));
  }
  FaultInjector faults(parse_fault_plan(context.environment.fault_plan), control.rank());
  CheckpointSaverOptions saver;
  saver.folder = save + "/checkpoints";
  saver.keep_latest_k = loaded.config.checkpoint.keep_latest_k;
  saver.attempt = run.attempt;
  saver.at_point = [&faults](std::string_view point) { faults.hit(point); };
  if (run.lock) saver.check_lock = [&run] { run.lock->check(); };
  const std::shared_ptr<const Tokenizer> tokenizer =
      Tokenizer::load(context.fs, data.train.front().dataset->tokenizer_directory());
  const std::string data_text = data.text;
  std::optional<StepTracer> tracer;
  // The profiler complains on standard error of devices that a run on the CPU does not have.
  if (device.is_cpu()) ::setenv("KINETO_LOG_LEVEL", "99", /*overwrite=*/0);
  if (loaded.config.profile.includes_rank(control.rank()))
    tracer.emplace(StepTracerInputs{.config = loaded.config.profile,
                                    .recorder = *context.job.recorder,
                                    .fs = context.fs,
                                    .log = log,
                                    .device = device,
                                    .mesh = mesh,
                                    .rank = control.rank(),
                                    .folder = save + "/trace"});
  Trainer trainer({.config = loaded.config,
                   .fs = context.fs,
                   .control = control,
                   .groups = groups,
                   .log = log,
                   .device = device,
                   .train_datasets = std::move(data.train),
                   .validation_datasets = std::move(data.validation),
                   .old_validation_datasets = std::move(data.old_validation),
                   .tokenizer = tokenizer,
                   .saver = saver,
                   .mesh = mesh.describe(),
                   .config_hash = experiment_hash(loaded.config),
                   .config_json = nlohmann::json::parse(resolved_json(loaded)),
                   .build_json = build_json(),
                   .data_text = data_text,
                   .stop_requested = [] { return stop_signal().has_value(); },
                   .faults = faults,
                   .tracer = tracer ? &*tracer : nullptr,
                   .others = {.init_from = weights.get(),
                              .teacher = teacher,
                              .teacher_cache = teacher_cache.get(),
                              .teacher_client = teacher_client}});
  if (checkpoint) {
    trainer.resume(*checkpoint);
  } else {
    trainer.start();
  }
  if (trainer.run() == TrainOutcome::Preempted) context.exit_code = exit_code(ErrorKind::Preempted);
  log.info("event=train_end step={} peak_memory_bytes={} run={}", trainer.state().step,
           trainer.peak_memory_bytes(), save);
}

void run_training(const TrainOptions& options, LoadedConfig& loaded, const Mesh& mesh, ExperimentData data,
                  std::unique_ptr<ModelBundle> init_from, CommandContext& context, Log& log) {
  const StartedRun run = start_run(options, loaded, mesh, data, context, log);
  const auto teacher = open_teacher(loaded, data, context, log);
  JobPart part(context, loaded.config.objective.teacher_ranks);
  with_teacher(part, loaded.config, mesh, teacher.get(), run.device, log, [&](TeacherClient* client) {
    train(options, loaded, mesh, std::move(data), std::move(init_from), teacher.get(), client, run,
          part.context(), log);
  });
}

void run_train(const TrainOptions& options, CommandContext& context) {
  ControlPlane& control = *context.job.control;
  Log log({.rank = control.rank(), .world_size = control.world_size()});
  catch_interrupts();
  LoadedConfig loaded = load_experiment(context.fs, options.config, options.overrides);
  const bool only_look = options.dry_run || options.print_config;
  ExperimentData data =
      open_data(context.fs, loaded.config, only_look ? MissingData::Allow : MissingData::Refuse);
  auto init_from = complete_config(loaded, data, context, log);
  if (options.print_config) {
    if (control.rank() == 0) std::cout << resolved_yaml(loaded);
    if (!options.dry_run) return;
  }
  const Mesh mesh = require_layout(loaded, control.world_size());
  HEARTH_CHECK(loaded.config.model.vocab_size > 0, Config,
               "model.vocab_size is needed as long as {} does not exist (then it is the tokenizer's size)",
               data.missing);
  if (options.dry_run) {
    const auto teacher = teacher_shape(loaded, context, log);
    if (control.rank() == 0) print_dry_run(loaded, mesh, data, teacher);
    return;
  }
  require_one_tokenizer(data);
  require_data_of_objective(loaded.config, data);
  control.set_timeout(loaded.config.parallel.collective_timeout_s);
  run_training(options, loaded, mesh, std::move(data), std::move(init_from), context, log);
}

}  // namespace

void add_train_command(CLI::App& parent, CommandContext& context) {
  auto options = std::make_shared<TrainOptions>();
  CLI::App* command =
      parent.add_subcommand("train", "Train a model as an experiment file says; resumes its run folder");
  command->add_option("CONFIG", options->config, "Experiment file (YAML)")->required();
  command->add_option("--set", options->overrides, "section.key=value, over the file; repeatable")
      ->allow_extra_args(false);
  command->add_flag("--dry-run", options->dry_run, "Print model, layout, tokens and memory, then end");
  command->add_flag("--print-config", options->print_config,
                    "Print the resolved experiment file with the origin of each key");
  command
      ->add_option("--resume", options->resume,
                   "auto (the run folder's newest verified checkpoint), never, or a CHECKPOINT")
      ->capture_default_str();
  command->add_option("--confirm", options->confirm, "Accept a change of section.key at resume; repeatable")
      ->allow_extra_args(false);
  command->add_option("--device", options->device, "auto, cpu or cuda")->capture_default_str();
  command->add_flag("--take-over", options->take_over,
                    "Take the run folder from a job on another host that is surely dead");
  command->callback([options, &context] { run_train(*options, context); });
}

}  // namespace hearth
