#include "layout_run.h"

#include <ATen/ops/zeros.h>
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/rng.h"
#include "parallel/single_comm.h"
#include "trainer/device.h"
#include "trainer/optimizer/lr_schedule.h"

namespace hearth::testing {
namespace {

constexpr int64_t kSequence = 32, kVocab = 509, kHorizon = 100;

// Every token but one in eight follows from the one before it, so that there is something to learn; documents
// begin anywhere; some targets do not count, so that ranks and micro-batches have different numbers of valid
// ones.
Sample sample(int64_t index) {
  const CounterRng rng(/*seed=*/11, "layout_run.samples");
  const auto draw = [&](int64_t position, uint64_t below) {
    return rng.bits(static_cast<uint64_t>(index * 1000 + position)) % below;
  };
  Sample s;
  s.tokens = {static_cast<int32_t>(draw(0, kVocab))};
  s.document_starts = {0};
  for (int64_t t = 0; t < kSequence; ++t) {
    const uint64_t surprise = draw(t + 1, 8 * kVocab);
    const int64_t next =
        surprise < kVocab ? static_cast<int64_t>(surprise) : (s.tokens.back() * 7 + 3) % kVocab;
    s.tokens.push_back(static_cast<int32_t>(next));
    s.loss_mask.push_back(draw(200 + t, 5) == 0 ? 0 : 1);
    if (t > 0 && draw(400 + t, 12) == 0) s.document_starts.push_back(static_cast<int32_t>(t));
  }
  return s;
}

ModelConfig model_config(Shape shape, int64_t layers) {
  ModelConfig m;
  m.vocab_size = kVocab;
  m.hidden_size = 64;
  m.intermediate_size = 96;
  m.num_hidden_layers = layers;
  m.num_attention_heads = 8;
  m.num_key_value_heads = 4;  // eight tensor-parallel ranks share each between two
  m.max_position_embeddings = kSequence;
  m.tie_word_embeddings = shape == Shape::Tied;
  m.attention_bias = m.attention_output_bias = m.qk_norm = shape == Shape::QkNormAndBias;
  return m;
}

std::map<std::string, at::Tensor> counted_gradients(const DistributedOptimizer& optimizer) {
  std::map<std::string, at::Tensor> gradients;
  for (const StateSlice& slice : optimizer.gradient_slices()) {
    at::Tensor& whole = gradients[slice.name];
    if (!whole.defined()) whole = at::zeros(slice.shape, at::kFloat);
    const at::Tensor values = slice.values.to(at::kCPU, at::kFloat).contiguous();
    for_each_run(
        slice.shape, slice.box, slice.begin, slice.end, [&](int64_t at, int64_t in_box, int64_t count) {
          std::copy_n(values.data_ptr<float>() + in_box - slice.begin, count, whole.data_ptr<float>() + at);
        });
  }
  return gradients;
}

Curve train(ParallelGroups& groups, const ExperimentConfig& config, const RunOptions& options) {
  ParallelModel model(config, groups, options.device);
  model.initialize(/*seed=*/17);
  for (size_t i = 0; i < model.num_chunks(); ++i) model.chunk(i).cut_products_from(options.least_cut);
  const BatchShape batch{.global_batch_size = options.global_batch,
                         .micro_batch_size = config.training.micro_batch_size,
                         .data_parallel_size = groups.mesh.size(MeshAxis::Dp),
                         .data_parallel_rank = groups.coordinate(MeshAxis::Dp)};
  Curve curve;
  for (int64_t step = 0; step < options.steps; ++step) {
    const auto next = [&, micro = int64_t{0}]() mutable {
      std::vector<Sample> samples;
      for (const int64_t index : micro_batch_samples(batch, step, micro)) samples.push_back(sample(index));
      ++micro;
      return make_micro_batch(samples, DocumentMask::Yes, model.chunk(0));
    };
    const StepTotals totals = model.sum_over_ranks(model.forward_backward(next, {}), false);
    if (step == 0) curve.gradients = counted_gradients(model.optimizer());
    curve.losses.push_back(totals.loss_sum / totals.valid_tokens);
    const double norm = std::sqrt(totals.squared_norm) / totals.valid_tokens;
    const double clip = options.clip_grad > 0 ? std::min(1.0, options.clip_grad / (norm + 1e-6)) : 1.0;
    model.optimizer().step(learning_rate(config.optimizer, kHorizon, step), clip / totals.valid_tokens);
  }
  model.optimizer().finish_parameters();
  return curve;
}

}  // namespace

int Layout::chunks() const {
  const int implied = implied_chunks(schedule_kind_from_config(schedule));
  return implied > 0 ? implied : 2;
}

std::string Layout::describe() const {
  return fmt::format("tp {} pp {} cp {} dp {} zero {}/{} {} {} {} {}{}{}", tp, pp, cp, dp, zero_stage,
                     instances, schedule, cp_comm_type, shape == Shape::Tied ? "tied" : "qk_norm+bias",
                     recompute, rows_whole ? " rows_whole" : "", uneven ? " uneven" : "");
}

ExperimentConfig layout_config(const Layout& layout, const RunOptions& options) {
  ExperimentConfig c;
  static_cast<ModelConfig&>(c.model) = model_config(layout.shape, options.layers);
  c.data.seq_length = kSequence;
  c.training.train_iters = kHorizon;
  c.training.global_batch_size = options.global_batch;
  c.training.micro_batch_size = 1;
  c.optimizer.lr = 1e-3;  // at which the gradient norm stays near 1 and rounding is not amplified
  c.optimizer.min_lr = 1e-4;
  c.optimizer.lr_warmup_iters = 10;
  c.optimizer.clip_grad = options.clip_grad;
  c.precision.dtype = config_name(options.dtype);
  c.precision.main_grads_dtype = config_name(options.grads_dtype);
  if (layout.recompute == "full") {
    c.recompute = {.granularity = "full", .num_layers = 3};
  } else if (layout.recompute == "none") {
    c.recompute.granularity = "none";
  } else if (layout.recompute == "core_attn") {
    c.recompute.modules = {"core_attn"};
  }
  c.parallel.tensor_model_parallel_size = layout.tp;
  c.parallel.pipeline_model_parallel_size = layout.pp;
  c.parallel.context_parallel_size = layout.cp;
  c.parallel.zero_stage = layout.zero_stage;
  c.parallel.num_distributed_optimizer_instances = layout.instances;
  c.parallel.pipeline_schedule = layout.schedule;
  c.parallel.virtual_pipeline_model_parallel_size = layout.schedule == "interleaved" ? 2 : 1;
  c.parallel.cp_comm_type = layout.cp_comm_type;
  c.parallel.sequence_parallel = !layout.rows_whole;
  if (layout.uneven) {
    const int64_t stages = layout.pp * layout.chunks();
    auto& split = c.parallel.pipeline_model_parallel_layout;
    split.assign(static_cast<size_t>(stages), options.layers / stages);
    ++split.front();
    --split.back();
  }
  c.parallel.collective_timeout_s = 60;
  c.parallel.bucket_size_mb = 0.05;  // several buckets
  return c;
}

Curve run_layout(Job& job, const Layout& layout, const RunOptions& options) {
  const ExperimentConfig config = layout_config(layout, options);
  const Mesh mesh = Mesh::from_config(config.parallel, layout.ranks());
  const auto begin = std::chrono::steady_clock::now();
  ParallelGroups groups = make_parallel_groups(job, config, mesh, options.device);
  const std::chrono::duration<double> start = std::chrono::steady_clock::now() - begin;
  Curve curve = train(groups, config, options);
  curve.start_seconds = start.count();
  return curve;
}

Curve run_alone(const Layout& layout, const RunOptions& options) {
  ParallelGroups groups;
  groups.data = make_single_comm("dp");  // one rank with zero_stage 0 copies nothing
  return train(groups, layout_config({.shape = layout.shape}, options), options);
}

}  // namespace hearth::testing
