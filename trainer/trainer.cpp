#include "trainer/trainer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/error.h"
#include "trainer/evaluate.h"
#include "trainer/generate.h"
#include "trainer/memory_report.h"
#include "trainer/model/model_config_json.h"
#include "trainer/optimizer/lr_schedule.h"
#include "trainer/parallel_layout.h"

namespace hearth {
namespace {

// A run whose every update is refused is not going to recover by itself.
constexpr int64_t kMaxConsecutiveSkips = 5;

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

std::vector<TensorPiece> pieces_of(const std::vector<StateSlice>& slices) {
  std::vector<TensorPiece> pieces;
  for (const StateSlice& slice : slices) {
    TensorPiece piece = TensorPiece::whole(slice.name, dtype_of(slice.values), slice.shape);
    piece.box = slice.box;
    piece.begin = slice.begin;
    piece.end = slice.end;
    pieces.push_back(std::move(piece));
  }
  return pieces;
}

}  // namespace

Trainer::Trainer(TrainerInputs inputs)
    : in_(std::move(inputs)),
      is_root_(in_.control.rank() == 0),
      model_(in_.config, in_.groups, in_.device, in_.others) {
  const ExperimentConfig& c = in_.config;
  if (in_.others.teacher != nullptr && in_.others.teacher_client == nullptr)
    teacher_ = in_.others.teacher->config;
  batch_ = {.global_batch_size = c.training.global_batch_size,
            .micro_batch_size = c.training.micro_batch_size,
            .data_parallel_size = in_.groups.mesh.size(MeshAxis::Dp),
            .data_parallel_rank = in_.groups.coordinate(MeshAxis::Dp)};
  set_deterministic(c.training.deterministic_mode);
  model_.allow_graphs(c, in_.log);
  const auto held_out =
      [&](std::vector<std::unique_ptr<Dataset>>& datasets) -> std::unique_ptr<ValidationStream> {
    if (datasets.empty()) return nullptr;
    return std::make_unique<ValidationStream>(
        std::move(datasets), c.data.seq_length,
        c.data.reset_attention_mask ? BorderTargets::Skip : BorderTargets::Count);
  };
  validation_ = held_out(in_.validation_datasets);
  old_validation_ = held_out(in_.old_validation_datasets);
  auto options = in_.saver;
  options.allocator = snapshot_allocator(in_.device);
  saver_ = std::make_unique<CheckpointSaver>(in_.fs, in_.control, in_.log, std::move(options));
}

Trainer::~Trainer() = default;

void Trainer::begin_stream(const DataLedger& ledger) {
  const ExperimentConfig& c = in_.config;
  StreamOptions options;
  options.seq_length = c.data.seq_length;
  options.seed = static_cast<uint64_t>(c.training.seed);
  options.border_targets = c.data.reset_attention_mask ? BorderTargets::Skip : BorderTargets::Count;
  stream_ = std::make_unique<SampleStream>(std::move(in_.train_datasets), options, ledger);
  const int64_t per_step = batch_.micro_batches_per_step(), last = c.training.train_iters * per_step;
  // Steps are numbered from the start of the run, samples from the stream: the two part when the batch size
  // changed.
  const int64_t first_step = state_.step, first_sample = state_.consumed_samples;
  Prefetcher::Options prefetch;
  prefetch.first_micro_batch = first_step * per_step;
  prefetcher_ = std::make_unique<Prefetcher>(
      [stream = stream_.get()](int64_t index) { return stream->get(index); },
      [batch = batch_, per_step, last, first_step, first_sample](int64_t micro) {
        if (micro >= last) return std::vector<int64_t>{};
        auto samples = micro_batch_samples(batch, micro / per_step - first_step, micro % per_step);
        for (int64_t& sample : samples) sample += first_sample;
        return samples;
      },
      prefetch);
}

void Trainer::start() {
  model_.start(static_cast<uint64_t>(in_.config.training.seed), in_.others.init_from);
  begin_stream(DataLedger{});
}

void Trainer::resume(const CheckpointReader& checkpoint) {
  const auto json = nlohmann::json::parse(checkpoint.state_json());
  state_ = train_state_from_json(json.value("train", nlohmann::json::object()), checkpoint.describe());
  model_.resume(checkpoint, in_.others.init_from);
  model_.optimizer().set_num_updates(state_.optimizer_updates);
  last_saved_step_ = checkpoint.step();
  begin_stream(state_.ledger);
  in_.log.info("event=resumed step={} checkpoint={} saved_by=\"{}\" now=\"{}\" learning_rate={:.6e}",
               state_.step, checkpoint.directory(), checkpoint.manifest().identity.mesh, in_.mesh,
               learning_rate(in_.config.optimizer, in_.config.training.train_iters, state_.step));
}

StepTotals Trainer::forward_backward() {
  const auto next = [this] {
    in_.faults.hit("data.next");
    return model_.training_micro_batch(prefetcher_->next(), document_mask(in_.config.data));
  };
  const auto before = [this](const Action& action) {
    if (action.kind == ActionKind::Forward && in_.faults.hit("fwd") == FaultAction::Nan) poisoned_ = true;
  };
  auto sums = model_.forward_backward(next, in_.faults.armed() ? before : PipelineExecutor::Observer());
  if (std::exchange(poisoned_, false)) sums.sums.fill_(std::nan(""));
  // A test of hangs may order this rank to go on as if the sums had come.
  if (in_.faults.hit("allreduce.before") == FaultAction::SkipCollective)
    return {.loss_sum = 1,
            .valid_tokens = 1,
            .metrics = std::vector<double>(model_.objective().metrics().size(), 1.0)};
  return model_.sum_over_ranks(sums, stop_requested());
}

// A non-finite loss or gradient on any rank stops the update on all ranks: the sums above made everyone see
// it.
void Trainer::skip_update(const StepTotals& totals, int64_t step) {
  ++state_.skipped_iterations;
  ++consecutive_skips_;
  in_.log.warning(
      "event=update_skipped step={} loss_sum={} squared_grad_norm={} consecutive={}: parameters are "
      "unchanged",
      step, totals.loss_sum, totals.squared_norm, consecutive_skips_);
  HEARTH_CHECK(consecutive_skips_ < kMaxConsecutiveSkips, Numeric,
               "the loss or the gradient was not finite in {} steps in a row, the last one step {} (samples "
               "{} to {}); "
               "checkpoints hold only finite parameters. Lower optimizer.lr, or look at those samples",
               consecutive_skips_, step, state_.consumed_samples,
               state_.consumed_samples + batch_.global_batch_size - 1);
}

StepMetrics Trainer::train_step(bool& stop) {
  const ExperimentConfig& c = in_.config;
  const int64_t step = state_.step + 1;
  in_.faults.set_step(step);
  const auto begin = std::chrono::steady_clock::now();
  const StepTotals totals = forward_backward();
  StepMetrics metrics;
  metrics.step = step;
  metrics.learning_rate = learning_rate(c.optimizer, c.training.train_iters, state_.step);
  metrics.lm_loss = totals.lm_loss();
  metrics.objective = model_.objective_metrics(totals);
  metrics.grad_norm = totals.grad_norm();
  if (model_.update(totals, metrics.learning_rate, c.optimizer.clip_grad)) {
    consecutive_skips_ = 0;
  } else {
    skip_update(totals, step);
  }
  state_.step = step;
  state_.consumed_samples += batch_.global_batch_size;
  state_.consumed_tokens += batch_.global_batch_size * c.data.seq_length;
  state_.optimizer_updates = model_.optimizer().num_updates();
  stop = totals.stop;
  const double seconds = seconds_since(begin);
  const auto tokens = static_cast<double>(batch_.global_batch_size * c.data.seq_length);
  metrics.tokens_per_second = tokens / seconds;
  metrics.tflops = metrics.tokens_per_second * model_flops(c.model, c.data.seq_length).per_token_causal /
                   1e12 / static_cast<double>(in_.control.world_size());
  const double peak = peak_flops(in_.device);
  if (peak > 0) metrics.mfu_percent = 100.0 * metrics.tflops * 1e12 / peak;
  metrics.consumed_tokens = state_.consumed_tokens;
  metrics.skipped_iterations = state_.skipped_iterations;
  return metrics;
}

StepTotals Trainer::held_out_totals(const ValidationStream& stream) {
  const at::NoGradGuard no_grad;
  const int64_t count = std::min(stream.size(), in_.config.training.eval_iters * batch_.global_batch_size);
  ParallelModel::LocalSums mine = model_.no_sums();
  // Micro-batch number i of the fixed list of windows goes to rank i modulo the data-parallel size. Every
  // rank makes as many calls, since they communicate: where windows run out, a repeated one that does not
  // count fills in.
  const int64_t size = batch_.micro_batch_size, stride = batch_.data_parallel_size * size;
  for (int64_t round = 0; round < count; round += stride) {
    const int64_t first = round + batch_.data_parallel_rank * size;
    std::vector<Sample> samples;
    for (int64_t i = first; i < first + size; ++i) {
      samples.push_back(stream.get(std::min(i, count - 1)));
      if (i >= count) std::fill(samples.back().loss_mask.begin(), samples.back().loss_mask.end(), uint8_t{0});
    }
    const auto sums = model_.evaluate(model_.micro_batch(samples, document_mask(in_.config.data)));
    mine.sums.add_(sums.sums);
    mine.valid_tokens += sums.valid_tokens;
  }
  return model_.sum_over_ranks(mine, /*stop_requested=*/false);
}

double Trainer::old_loss() {
  const StepTotals totals = held_out_totals(*old_validation_);
  return totals.lm_loss();
}

ValidationMetrics Trainer::validate(int64_t step) {
  ValidationMetrics metrics{.step = step};
  if (validation_) {
    const StepTotals totals = held_out_totals(*validation_);
    metrics.loss = totals.lm_loss();
    metrics.num_tokens = static_cast<int64_t>(totals.valid_tokens);
    metrics.objective = model_.objective_metrics(totals);
  }
  if (old_validation_) {
    state_.old_loss = old_loss();
    metrics.objective.emplace_back("old loss", *state_.old_loss);
    metrics.objective.emplace_back("forgetting",
                                   *state_.old_loss - state_.old_loss_before.value_or(*state_.old_loss));
  }
  return metrics;
}

// A short continuation of nothing, so that people see the model learn. All replicas make one, with as many
// calls whatever they draw: under zero_stage 3 each call gathers weights over all of them.
void Trainer::write_sample(int64_t step) {
  const auto start_id = in_.tokenizer->bos_id() ? in_.tokenizer->bos_id() : in_.tokenizer->eos_id();
  if (!start_id) return;
  GenerationOptions options;
  options.max_new_tokens = 48;
  options.sampling = {.temperature = 0.8, .top_p = 0.95};
  options.seed = static_cast<uint64_t>(in_.config.training.seed + step);
  const std::vector<int32_t> prompt{*start_id};
  InferenceModel model = model_.inference();
  Generation sample = generate(model, prompt, options, {});
  if (!is_root_) return;
  if (const auto eos = in_.tokenizer->eos_id())
    sample.ids.erase(std::find(sample.ids.begin(), sample.ids.end(), *eos), sample.ids.end());
  const nlohmann::json line{{"step", step}, {"text", in_.tokenizer->decode(sample.ids, DecodeSpecial::Skip)}};
  JsonlWriter(in_.fs, in_.config.checkpoint.save + "/samples.jsonl", step)
      .write(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

CheckpointIdentity Trainer::identity(int64_t step) const {
  CheckpointIdentity id;
  id.step = step;
  id.mesh = in_.mesh;
  id.config_hash = in_.config_hash;
  for (int64_t i = 0; i < stream_->num_datasets(); ++i)
    id.data_fingerprint += (i > 0 ? "," : "") + stream_->dataset(i).digest();
  id.tokenizer_digest = stream_->tokenizer_digest();
  return id;
}

std::string Trainer::state_json() const {
  nlohmann::json json;
  json["train"] = train_state_to_json(state_);
  json["model"] = model_config_to_json(in_.config.model);
  json["dtype"] = in_.config.precision.dtype;
  if (const LoraShape lora = in_.config.objective.lora(); lora.rank > 0)
    json["lora"] = {{"rank", lora.rank},
                    {"alpha", lora.alpha},
                    {"rslora", lora.rslora},
                    {"target_modules", lora.target_modules},
                    {"base_model", continues_adapters(in_.config.objective, in_.others.init_from)
                                       ? in_.others.init_from->base_model
                                       : in_.config.model.init_from.value_or("")}};
  json["config"] = in_.config_json;
  json["build"] = in_.build_json;
  json["data"] = in_.data_text;
  if (state_.old_loss_before && state_.old_loss)
    json["forgetting"] = {{"before", *state_.old_loss_before},
                          {"after", *state_.old_loss},
                          {"allowed", in_.config.objective.incremental.max_forgetting}};
  // All randomness is counter-based: the seed and the step are the whole generator state.
  json["rng"] = {{"kind", "philox4x32-10"}, {"seed", in_.config.training.seed}};
  return json.dump(1);
}

void Trainer::save(int64_t step) {
  if (step == last_saved_step_) return;
  state_.ledger = stream_->ledger_after(state_.consumed_samples);
  HEARTH_CHECK(in_.control.vote(model_.optimizer().masters_are_finite(), "", "checkpoint.finite"), Numeric,
               "step {}: a parameter is not finite; nothing is saved over the last good checkpoint. Lower "
               "optimizer.lr and "
               "start again from there",
               step);
  const auto slices = model_.optimizer().state_slices();
  Snapshot* snapshot = saver_->begin(identity(step), pieces_of(slices));
  if (snapshot == nullptr)
    return;  // logged and counted by the saver; the loop goes on with the older checkpoint
  for (size_t i = 0; i < slices.size(); ++i) copy_to_host(slices[i].values, snapshot->data(i));
  std::vector<ExtraFile> extra;
  for (const auto& [name, content] : in_.tokenizer->files()) extra.push_back({"tokenizer/" + name, content});
  saver_->commit_async(state_json(), std::move(extra));
  if (!in_.config.checkpoint.async_save) saver_->wait();
  last_saved_step_ = step;
}

TrainOutcome Trainer::run() {
  const TrainingConfig& t = in_.config.training;
  std::unique_ptr<JsonlWriter> writer;
  std::unique_ptr<Progress> progress;
  if (is_root_) {
    writer =
        std::make_unique<JsonlWriter>(in_.fs, in_.config.checkpoint.save + "/metrics.jsonl", state_.step);
    progress = std::make_unique<Progress>(in_.log, state_.step, t.train_iters);
  }
  bool stop = in_.control.all_reduce_max(stop_requested() ? 1 : 0, "run.begin") > 0;
  MemoryReport memory(
      in_.log, model_.parameters().memory(),
      estimate_memory(in_.config, in_.groups.mesh, pipeline_schedule(in_.config, in_.groups.mesh),
                      in_.groups.rank, teacher_ ? &*teacher_ : nullptr));
  if (old_validation_ && !state_.old_loss_before) {
    state_.old_loss_before = old_loss();
    in_.log.info("event=old_loss step={} loss={:.6f}: what the run began with", state_.step,
                 *state_.old_loss_before);
  }
  if (state_.step < t.train_iters && !stop) saver_->reserve(pieces_of(model_.optimizer().state_slices()));
  while (state_.step < t.train_iters && !stop) {
    if (in_.tracer != nullptr) in_.tracer->begin_step(state_.step + 1);
    const StepMetrics metrics = train_step(stop);
    if (in_.tracer != nullptr) in_.tracer->end_step(metrics.step);
    memory.step(metrics.step);
    in_.faults.hit("step.end");
    if (is_root_ && (metrics.step % t.log_interval == 0 || metrics.step == t.train_iters || stop)) {
      writer->write(metrics.to_json());
      progress->step(metrics);
    }
    saver_->poll();
    const bool last = state_.step == t.train_iters;
    if ((validation_ || old_validation_) && t.eval_interval > 0 &&
        (state_.step % t.eval_interval == 0 || last)) {
      const ValidationMetrics validation = validate(state_.step);
      if (is_root_) {
        writer->write(validation.to_json());
        progress->validation(validation);
      }
      write_sample(state_.step);
    }
    const int64_t interval = in_.config.checkpoint.save_interval;
    if (last || stop || (interval > 0 && state_.step % interval == 0)) {
      if (stop && !last) in_.log.info("event=stopping step={} reason=signal: saving", state_.step);
      save(state_.step);
    }
  }
  if (in_.tracer != nullptr) in_.tracer->finish();
  if (is_root_) progress->finish();
  if (const auto peaks = memory.finish(in_.control, state_.step); peaks && is_root_) writer->write(*peaks);
  in_.faults.hit("finalize");
  saver_->finish();
  if (state_.step >= t.train_iters) return TrainOutcome::Finished;
  in_.log.info("event=preempted step={}: resume with the same command", state_.step);
  return TrainOutcome::Preempted;
}

}  // namespace hearth
