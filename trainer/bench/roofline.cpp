#include "trainer/bench/roofline.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <vector>

#include "base/error.h"
#include "kernels/gemm_op.h"
#include "trainer/device.h"
#include "trainer/model/attention.h"
#include "trainer/model/block_functions.h"
#include "trainer/parallel_model.h"

namespace hearth {
namespace {

struct Shape {
  int64_t rows, hidden, heads, kv_heads, head_width, feed_forward, vocab, layers;
};
Shape shape_of(const ExperimentConfig& config) {
  const ModelConfig& m = config.model;
  return {.rows = config.training.micro_batch_size * config.data.seq_length,
          .hidden = m.hidden_size,
          .heads = m.num_attention_heads,
          .kv_heads = m.kv_heads(),
          .head_width = m.head_width(),
          .feed_forward = m.intermediate_size,
          .vocab = m.vocab_size,
          .layers = m.num_hidden_layers};
}

at::ScalarType dtype_of(const ExperimentConfig& config) {
  return config.precision.dtype == "bf16" ? at::kBFloat16 : at::kFloat;
}

// Seconds of one call, from calls back to back for at least so long.
double seconds_per_call(at::Device device, double at_least, const std::function<void()>& call) {
  using Clock = std::chrono::steady_clock;
  for (int i = 0; i < 4; ++i) call();  // allocations, and products that come back are tuned
  synchronize(device);
  for (int64_t calls = 1;; calls *= 2) {
    const auto begin = Clock::now();
    for (int64_t i = 0; i < calls; ++i) call();
    synchronize(device);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    if (seconds >= at_least) return seconds / static_cast<double>(calls);
  }
}

// A linear layer of `outputs` over `rows` with operands of its own: forward and both gradients, as in
// training.
class LinearPass {
 public:
  LinearPass(int64_t rows, int64_t inputs, int64_t outputs, const at::TensorOptions& options,
             const at::TensorOptions& gradient_options)
      : x_(at::randn({rows, inputs}, options)),
        weight_(at::randn({outputs, inputs}, options).mul_(0.02)),
        dy_(at::randn({rows, outputs}, options)),
        gradient_(at::zeros({outputs, inputs}, gradient_options)),
        flops_(6.0 * static_cast<double>(rows) * static_cast<double>(inputs) * static_cast<double>(outputs)) {
  }
  void run() {
    kernels::linear_forward_op(x_, weight_);
    kernels::linear_backward_input_op(dy_, weight_);
    kernels::linear_backward_weight_op(dy_, x_, gradient_);
  }
  double flops() const { return flops_; }

 private:
  at::Tensor x_, weight_, dy_, gradient_;
  double flops_;
};

struct Rate {
  double seconds = 0, flops = 0;
};

// All products of a micro-batch: a layer's, in the order of the step, and the head's chunks.
Rate gemm_rate(const ExperimentConfig& config, at::Device device, double at_least) {
  const Shape s = shape_of(config);
  const auto options = at::TensorOptions(device).dtype(dtype_of(config));
  const auto gradients = at::TensorOptions(device).dtype(
      config.precision.grads_dtype() == DType::BF16 ? at::kBFloat16 : at::kFloat);
  const auto measure = [&](std::vector<LinearPass> passes, int64_t count) {
    double flops = 0;
    for (const LinearPass& pass : passes) flops += pass.flops();
    const double seconds = seconds_per_call(device, at_least, [&] {
      for (LinearPass& pass : passes) pass.run();
    });
    return Rate{seconds * static_cast<double>(count), flops * static_cast<double>(count)};
  };
  std::vector<LinearPass> layer;
  const int64_t queries = s.heads * s.head_width, keys = s.kv_heads * s.head_width;
  layer.emplace_back(s.rows, s.hidden, queries + 2 * keys, options, gradients);
  layer.emplace_back(s.rows, queries, s.hidden, options, gradients);
  layer.emplace_back(s.rows, s.hidden, 2 * s.feed_forward, options, gradients);
  layer.emplace_back(s.rows, s.feed_forward, s.hidden, options, gradients);
  Rate rate = measure(std::move(layer), s.layers);
  const int64_t chunk =
      rows_per_logits_chunk(s.rows, s.vocab, static_cast<int64_t>(options.dtype().itemsize()));
  std::vector<LinearPass> head;
  head.emplace_back(chunk, s.hidden, s.vocab, options, gradients);
  const Rate head_rate = measure(std::move(head), 1);
  const double chunks = static_cast<double>(s.rows) / static_cast<double>(chunk);
  return {rate.seconds + chunks * head_rate.seconds, rate.flops + chunks * head_rate.flops};
}

// Forward and backward of all layers, causal over whole samples.
Rate attention_rate(const ExperimentConfig& config, at::Device device, double at_least) {
  const Shape s = shape_of(config);
  const auto options = at::TensorOptions(device).dtype(dtype_of(config));
  at::Tensor qkv =
      at::randn({s.rows, s.heads + 2 * s.kv_heads, s.head_width}, options).set_requires_grad(true);
  const at::Tensor gradient = at::randn({s.rows, s.heads * s.head_width}, options);
  const std::vector<std::vector<int32_t>> starts(static_cast<size_t>(config.training.micro_batch_size), {0});
  const AttentionLayout layout = make_attention_layout(
      starts, config.data.seq_length, {device, dtype_of(config), {s.heads, s.kv_heads, s.head_width}});
  const double seconds = seconds_per_call(device, at_least, [&] {
    attention(qkv, s.heads, s.kv_heads, layout).backward(gradient);
    qkv.mutable_grad().reset();
  });
  const double flops = 6.0 * static_cast<double>(s.rows) * static_cast<double>(config.data.seq_length) *
                       static_cast<double>(s.heads * s.head_width);  // half of the square
  const auto layers = static_cast<double>(s.layers);
  return {seconds * layers, flops * layers};
}

double copy_rate(at::Device device, double at_least) {
  const int64_t bytes = device.is_cuda() ? int64_t{1} << 30 : int64_t{1} << 26;
  const auto options = at::TensorOptions(device).dtype(at::kFloat);
  const at::Tensor from = at::randn({bytes / 4}, options);
  at::Tensor to = at::empty({bytes / 4}, options);
  return 2.0 * static_cast<double>(bytes) / seconds_per_call(device, at_least, [&] { to.copy_(from); });
}

}  // namespace

StepBytes step_bytes(const ExperimentConfig& config, int64_t micro_batches) {
  const Shape s = shape_of(config);
  const RecomputeChoice recompute = recompute_choice(config.recompute);
  const PrecisionConfig& p = config.precision;
  const int64_t element = p.dtype == "bf16" ? 2 : 4, gradient = size_bytes(p.grads_dtype());
  const int64_t row = s.rows * s.hidden, rotated = s.rows * (s.heads + s.kv_heads) * s.head_width,
                wide = s.rows * s.feed_forward;
  // Forward: input and output of both norms, the residuals that two products add, q and k turned in place,
  // gate and up to the activation.
  const int64_t forward = 2 * 2 * row + 2 * row + 2 * rotated + 3 * wide;
  // Backward: both norms read input, gradient and the residual's gradient; what is rebuilt is written
  // besides.
  const int64_t backward =
      2 * (4 + (recompute.norm ? 1 : 0)) * row + 2 * rotated + (5 + (recompute.swiglu ? 1 : 0)) * wide;
  const int64_t parameters = parameter_count(config.model);
  StepBytes bytes;
  bytes.activations =
      micro_batches * element * (s.layers * (forward + backward) + 2 * row + 3 * row);  // and the last norm
  bytes.loss = micro_batches * element * 2 * s.rows * s.vocab;
  bytes.embedding = micro_batches * (element * 3 * row + 2 * gradient * row);  // every token another row
  bytes.optimizer =
      parameters * (2 * gradient + 2 * p.optimizer_bytes() + (p.has_masters() ? 1 : 2) * element);
  return bytes;
}

Roofline measure_roofline(const ExperimentConfig& config, int64_t micro_batches, at::Device device,
                          double seconds) {
  const auto count = static_cast<double>(micro_batches);
  const Rate gemm = gemm_rate(config, device, seconds),
             attention_part = attention_rate(config, device, seconds);
  Roofline r;
  r.copy_bytes_per_second = copy_rate(device, seconds);
  r.gemm_flops_per_second = gemm.flops / gemm.seconds;
  r.attention_flops_per_second = attention_part.flops / attention_part.seconds;
  r.gemm_seconds = count * gemm.seconds;
  r.attention_seconds = count * attention_part.seconds;
  r.bytes_seconds = static_cast<double>(step_bytes(config, micro_batches).total()) / r.copy_bytes_per_second;
  return r;
}

}  // namespace hearth
