#include "trainer/parity.h"

#include <ATen/ATen.h>
#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
#include "base/rng.h"
#include "trainer/checkpoint/safetensors.h"

namespace hearth {
namespace {

constexpr int64_t kProjections = 4;

// [width, 4], entries +-1 / sqrt(4): the length of a projected vector is the length of the vector on average.
at::Tensor projection(int64_t width, at::Device device) {
  const CounterRng rng(/*seed=*/1, "parity.projection");
  at::Tensor matrix = at::empty({width, kProjections}, at::kDouble);
  for (int64_t i = 0; i < matrix.numel(); ++i)
    matrix.data_ptr<double>()[i] = rng.bits(static_cast<uint64_t>(i)) % 2 == 0 ? 0.5 : -0.5;
  return matrix.to(device);
}

// Which row of the batch (sample x seq_length + position) each row of a micro-batch is: [rows] on the device.
at::Tensor batch_rows(const std::vector<int64_t>& samples, const MicroBatch& batch, int64_t seq_length) {
  const int64_t rows = batch.input.rows(), per_sample = rows / static_cast<int64_t>(samples.size());
  const auto options = at::TensorOptions(batch.input.ids_N.device()).dtype(at::kLong);
  const at::Tensor positions =
      batch.input.shared ? batch.input.positions_N
                         : at::arange(per_sample, options).repeat({static_cast<int64_t>(samples.size())});
  return at::tensor(samples, at::kLong).to(options.device()).repeat_interleave(per_sample) * seq_length +
         positions;
}

// Collects sketches of one step. Of ranks that hold the same rows the first one counts.
class Sketches {
 public:
  Sketches(const ExperimentConfig& config, const ParallelGroups& groups, at::Device device)
      : config_(config),
        tensor_rank_(groups.coordinate(MeshAxis::Tp)),
        tensor_size_(groups.mesh.size(MeshAxis::Tp)),
        projection_(projection(config.model.hidden_size, device)) {
    const int64_t rows = config.training.global_batch_size * config.data.seq_length;
    names_.push_back("embedding");
    for (int64_t layer = 0; layer < config.model.num_hidden_layers; ++layer)
      names_.push_back(fmt::format("layers.{}", layer));
    names_.push_back("norm");
    for (const std::string& name : names_)
      sketches_[name] = at::zeros({rows, kProjections + 1}, projection_.options());
  }

  void set_rows(int micro, at::Tensor rows) { rows_[micro] = std::move(rows); }
  void set_micro(int micro) { micro_ = micro; }

  void see(const std::string& name, const at::Tensor& x_nD) {
    if (micro_ < 0) return;
    at::Tensor rows = rows_.at(micro_);
    const int64_t held = x_nD.size(0);
    const bool split = held != rows.size(0);  // sequence parallel: a run of the rows on each rank
    if (!split && tensor_rank_ != 0) return;
    if (split) rows = rows.narrow(0, tensor_rank_ * held, held);
    HEARTH_ASSERT(!split || held * tensor_size_ == rows_.at(micro_).size(0));
    const at::Tensor x = x_nD.to(at::kDouble);
    sketches_.at(name).index_copy_(0, rows,
                                   at::cat({at::matmul(x, projection_), x.square().sum(1, true)}, 1));
  }

  std::vector<ActivationSketch> sum(Comm& everyone) {
    std::vector<ActivationSketch> result;
    for (const std::string& name : names_) {
      at::Tensor& sketch = sketches_.at(name);
      everyone.all_reduce(sketch.data_ptr(), sketch.numel(), DType::F64, ReduceOp::Sum, "parity.activation")
          ->wait();
      result.push_back({name, sketch.to(at::kCPU)});
    }
    return result;
  }

 private:
  const ExperimentConfig& config_;
  int64_t tensor_rank_, tensor_size_;
  at::Tensor projection_;
  std::vector<std::string> names_;
  std::map<std::string, at::Tensor> sketches_;
  std::map<int, at::Tensor> rows_;  // by micro-batch
  int micro_ = -1;                  // before the first action the model may write samples: not of the step
};

// The row whose difference is largest relative to the length of the row in b, or of a typical row where that
// is shorter.
ParityDifference compare_activation(const ActivationSketch& a, const ActivationSketch& b,
                                    int64_t seq_length) {
  const at::Tensor difference = (a.rows_N5 - b.rows_N5).narrow(1, 0, kProjections).square().sum(1).sqrt();
  const at::Tensor length = b.rows_N5.select(1, kProjections).sqrt();
  const at::Tensor relative = difference / at::maximum(length, length.mean()).clamp_min(1e-30);
  const auto row = relative.argmax().item<int64_t>();  // a NaN counts as the largest
  return {"activation " + a.name, relative[row].item<double>(),
          fmt::format("sample {}, position {}", row / seq_length, row % seq_length)};
}

// One whole gradient out of all ranks' slices, divided by the tokens it is a sum over.
at::Tensor whole_gradient(Comm& everyone, const ParitySide& side, const ParameterSpec& spec,
                          at::Device device) {
  at::Tensor whole = at::zeros(spec.shape, at::kFloat);
  for (const StateSlice& slice : side.gradients) {
    if (slice.name != spec.name) continue;
    for_each_run(slice.shape, slice.box, slice.begin, slice.end,
                 [&](int64_t at, int64_t in_box, int64_t count) {
                   std::copy_n(slice.values.data_ptr<float>() + in_box - slice.begin, count,
                               whole.data_ptr<float>() + at);
                 });
  }
  whole = whole.to(device);
  everyone.all_reduce(whole.data_ptr(), whole.numel(), DType::F32, ReduceOp::Sum, "parity.gradient")->wait();
  return whole / side.valid_tokens;
}

std::unique_ptr<Comm> comm_of_everyone(Job& job, at::Device device) {
  const auto ordinal = device.is_cuda() ? std::optional<int>(device.index()) : std::nullopt;
  return make_comm(
      job, {.group = "parity", .ranks = job.control->all_ranks(), .cuda_device = ordinal, .timeout_s = {}});
}

}  // namespace

double parity_tolerance(const PrecisionConfig& precision) {
  return precision.dtype == "fp32" ? 1e-5 : 8.0 / 256;
}

ParitySide run_parity_side(Job& job, const ExperimentConfig& config, const Mesh& mesh, at::Device device,
                           const std::vector<Sample>& samples, const OtherModels& others) {
  ParallelGroups groups = make_parallel_groups(job, config, mesh, device);
  ParallelModel model(config, groups, device, others);
  model.start(static_cast<uint64_t>(config.training.seed), others.init_from);
  Sketches sketches(config, groups, device);
  for (size_t chunk = 0; chunk < model.num_chunks(); ++chunk)
    model.chunk(chunk).observe_activations(
        [&](const std::string& name, const at::Tensor& rows) { sketches.see(name, rows); });
  const BatchShape batch{.global_batch_size = config.training.global_batch_size,
                         .micro_batch_size = config.training.micro_batch_size,
                         .data_parallel_size = mesh.size(MeshAxis::Dp),
                         .data_parallel_rank = groups.coordinate(MeshAxis::Dp)};
  int micros = 0;
  const auto next = [&] {
    const auto indices = micro_batch_samples(batch, 0, micros);
    std::vector<Sample> mine;
    for (const int64_t index : indices) mine.push_back(samples[static_cast<size_t>(index)]);
    MicroBatch made = model.training_micro_batch(std::move(mine), document_mask(config.data));
    sketches.set_rows(micros++, batch_rows(indices, made, config.data.seq_length));
    return made;
  };
  const auto sums =
      model.forward_backward(next, [&](const Action& action) { sketches.set_micro(action.micro); });
  const StepTotals totals = model.sum_over_ranks(sums, /*stop_requested=*/false);
  ParitySide side;
  side.layout = fmt::format("{}, zero_stage {}, {}", mesh.describe(), config.parallel.zero_stage,
                            config.parallel.pipeline_schedule);
  side.loss = totals.loss_sum / totals.valid_tokens;
  side.metrics = model.objective_metrics(totals);
  side.grad_norm = std::sqrt(totals.squared_norm) / totals.valid_tokens;
  side.valid_tokens = totals.valid_tokens;
  side.activations = sketches.sum(groups.everyone());
  for (StateSlice& slice : model.optimizer().gradient_slices()) {
    slice.values = slice.values.to(at::TensorOptions(at::kCPU).dtype(at::kFloat), /*non_blocking=*/false,
                                   /*copy=*/true);
    side.gradients.push_back(std::move(slice));
  }
  model.optimizer().finish_parameters();
  return side;
}

void save_gradients(Job& job, FileSystem& fs, const std::string& path, const ParitySide& side,
                    const ExperimentConfig& config, at::Device device) {
  const auto everyone = comm_of_everyone(job, device);
  const bool is_root = job.control->rank() == 0;
  const auto specs = trained_parameter_specs(config);
  std::vector<TensorInfo> infos;
  for (const ParameterSpec& spec : specs) infos.push_back({spec.name, DType::F32, spec.shape});
  std::map<std::string, std::string> metadata{{"loss", fmt::format("{}", side.loss)},
                                              {"grad_norm", fmt::format("{}", side.grad_norm)}};
  for (const auto& [name, value] : side.metrics) metadata[name] = fmt::format("{}", value);
  std::optional<SafetensorsWriter> writer;
  if (is_root) writer.emplace(fs, path, CreateMode::Truncate, infos, metadata);
  for (const ParameterSpec& spec : specs) {
    const at::Tensor whole = whole_gradient(*everyone, side, spec, device).to(at::kCPU).contiguous();
    if (is_root)
      writer->append(
          {static_cast<const std::byte*>(whole.const_data_ptr()), static_cast<size_t>(whole.nbytes())});
  }
  if (!is_root) return;
  writer->sync();
  writer->close();
}

std::vector<ParityDifference> compare_sides(Job& job, const ParitySide& a, const ParitySide& b,
                                            const ExperimentConfig& config, at::Device device) {
  std::vector<ParityDifference> differences;
  for (size_t i = 0; i < a.activations.size(); ++i)
    differences.push_back(compare_activation(a.activations[i], b.activations[i], config.data.seq_length));
  differences.push_back({"loss", std::abs(a.loss - b.loss) / std::abs(b.loss), ""});
  const auto everyone = comm_of_everyone(job, device);
  auto specs = trained_parameter_specs(config);
  std::reverse(specs.begin(), specs.end());
  for (const ParameterSpec& spec : specs) {
    const at::Tensor mine = whole_gradient(*everyone, a, spec, device),
                     other = whole_gradient(*everyone, b, spec, device);
    const double scale = other.abs().max().item<double>();
    differences.push_back(
        {"gradient " + spec.name, (mine - other).abs().max().item<double>() / std::max(scale, 1e-30), ""});
  }
  differences.push_back({"grad_norm", std::abs(a.grad_norm - b.grad_norm) / std::abs(b.grad_norm), ""});
  return differences;
}

}  // namespace hearth
