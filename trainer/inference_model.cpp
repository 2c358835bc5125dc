#include "trainer/inference_model.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "base/error.h"
#include "parallel/tensor/upload.h"

namespace hearth {
namespace {

// A single row does not split over tensor-parallel ranks, nor do the odd sizes of documents.
class WholeRows {
 public:
  explicit WholeRows(const std::vector<Transformer*>& chunks) : chunks_(chunks) {
    for (Transformer* chunk : chunks_) before_ = chunk->set_sequence_parallel(SequenceParallel::Off);
  }
  ~WholeRows() {
    for (Transformer* chunk : chunks_) chunk->set_sequence_parallel(before_);
  }
  WholeRows(const WholeRows&) = delete;
  WholeRows& operator=(const WholeRows&) = delete;

 private:
  const std::vector<Transformer*>& chunks_;
  SequenceParallel before_ = SequenceParallel::Off;
};

// int64 [B]: an id for each row of fp32 logits [B, vocab].
at::Tensor draw_tokens(const at::Tensor& logits, const TokenDraw& draw, const at::Tensor& uniform_B) {
  if (draw.temperature <= 0.0) return std::get<1>(logits.max(1));  // the first of equals
  // 2^40 x at most 2^18 ids stays below 2^63. A sum of integers is exact, so deterministic on every device,
  // which a running sum of floating point numbers on CUDA is not.
  const at::Tensor scaled = logits.to(at::kDouble).div(draw.temperature);
  const at::Tensor weights = scaled.sub(scaled.amax(1, /*keepdim=*/true))
                                 .exp()
                                 .mul(0x1.0p40)
                                 .nan_to_num(0.0, 0.0, 0.0)
                                 .to(at::kLong);
  const at::Tensor running = weights.cumsum(1), total = running.narrow(1, draw.vocab - 1, 1);
  // The product may round up to the total itself.
  const at::Tensor drawn =
      at::minimum(total.to(at::kDouble).mul(uniform_B.unsqueeze(1)).to(at::kLong), total.sub(1));
  return at::searchsorted(running, drawn, /*out_int32=*/false, /*right=*/true)
      .squeeze(1)
      .clamp_max(draw.vocab - 1);
}

}  // namespace

InferenceModel::InferenceModel(Transformer& whole)
    : no_links_(std::make_unique<PipelineLinks>()),
      own_executor_(std::make_unique<PipelineExecutor>(make_schedule(ScheduleKind::OneFOneB, 1, 1, 1), 0,
                                                       std::vector<Transformer*>{&whole}, *no_links_)),
      executor_(*own_executor_),
      chunks_{&whole} {}

InferenceModel::InferenceModel(PipelineExecutor& executor, std::vector<Transformer*> chunks, Comm* pipeline)
    : executor_(executor), chunks_(std::move(chunks)), pipeline_(pipeline) {}

InferenceModel::~InferenceModel() = default;

at::Tensor InferenceModel::from_last_stage(at::Tensor values, std::string_view site) {
  if (pipeline_ == nullptr) return values;
  const DType dtype = values.scalar_type() == at::kInt ? DType::I32 : dtype_of(values);
  pipeline_->broadcast(values.data_ptr(), values.numel(), dtype, executor_.head_rank(), site)->wait();
  return values;
}

at::Tensor InferenceModel::token_logprobs(const ModelInput& input, const at::Tensor& targets_N) {
  const at::NoGradGuard no_grad;
  const WholeRows whole(chunks_);
  const at::Tensor hidden = executor_.infer(input, nullptr);
  at::Tensor values = hidden.defined()
                          ? executor_.head_chunk().logprobs(hidden, targets_N)
                          : at::empty({input.rows()}, at::TensorOptions(device()).dtype(at::kFloat));
  return from_last_stage(std::move(values), "infer.logprobs");
}

TopLogprobs InferenceModel::top_logprobs(const ModelInput& input, int64_t k, double temperature,
                                         int64_t vocab) {
  const at::NoGradGuard no_grad;
  const WholeRows whole(chunks_);
  const at::Tensor hidden = executor_.infer(input, nullptr);
  const auto options = at::TensorOptions(device());
  const int64_t rows = input.rows();
  TopLogprobs top{at::empty({rows, k}, options.dtype(at::kInt)),
                  at::empty({rows, k}, options.dtype(at::kFloat)),
                  at::empty({rows}, options.dtype(at::kFloat))};
  if (hidden.defined()) {
    const int64_t chunk = rows_per_logits_chunk(rows, config().vocab_size, /*element_bytes=*/4);
    for (int64_t begin = 0; begin < rows; begin += chunk) {
      const int64_t count = std::min(chunk, rows - begin);
      const at::Tensor logprobs = executor_.head_chunk()
                                      .logits(hidden.narrow(0, begin, count))
                                      .narrow(1, 0, vocab)
                                      .to(at::kFloat)
                                      .div(temperature)
                                      .log_softmax(1);
      const auto [values, ids] = logprobs.topk(k, 1, /*largest=*/true, /*sorted=*/true);
      at::Tensor to_ids = top.ids_NK.narrow(0, begin, count),
                 to_values = top.logprobs_NK.narrow(0, begin, count),
                 to_tail = top.tail_mass_N.narrow(0, begin, count);
      to_ids.copy_(ids);
      to_values.copy_(values);
      // The rest is summed itself where it is small: 1 - sum would be all rounding.
      if (k == vocab) {
        to_tail.zero_();
      } else {
        to_tail.copy_(logprobs.exp().scatter(1, ids, 0.0).sum(1));
      }
    }
  }
  return {from_last_stage(top.ids_NK, "infer.top.ids"),
          from_last_stage(top.logprobs_NK, "infer.top.logprobs"),
          from_last_stage(top.tail_mass_N, "infer.top.tail")};
}

std::vector<KvCache> InferenceModel::make_caches(int64_t capacity, int64_t batch) const {
  std::vector<KvCache> caches;
  for (const Transformer* chunk : chunks_) caches.push_back(chunk->make_cache(capacity, batch));
  return caches;
}

ModelInput InferenceModel::input_of(const std::vector<int64_t>& ids, int64_t batch) const {
  ModelInput input;
  input.ids_N = at::tensor(ids, at::kLong).to(device());
  input.layout.batch = batch;
  input.layout.sequence = static_cast<int64_t>(ids.size()) / batch;
  return input;
}

at::Tensor InferenceModel::logits(const std::vector<int64_t>& ids, std::vector<KvCache>* caches,
                                  int64_t last) {
  const at::NoGradGuard no_grad;
  const WholeRows whole(chunks_);
  const at::Tensor hidden = executor_.infer(input_of(ids, /*batch=*/1), caches);
  at::Tensor rows =
      hidden.defined()
          ? executor_.head_chunk().logits(hidden.narrow(0, hidden.size(0) - last, last)).to(at::kFloat)
          : at::empty({last, config().vocab_size}, at::TensorOptions(device()).dtype(at::kFloat));
  return from_last_stage(rows.contiguous(), "infer.logits").to(at::kCPU);
}

std::vector<int32_t> InferenceModel::next_tokens(const std::vector<int64_t>& ids, int64_t batch,
                                                 std::vector<KvCache>& caches, const TokenDraw& draw) {
  const at::NoGradGuard no_grad;
  const WholeRows whole(chunks_);
  HEARTH_REQUIRE(static_cast<int64_t>(draw.uniform.size()) == batch && !ids.empty() &&
                     static_cast<int64_t>(ids.size()) % batch == 0,
                 "{} tokens and {} draws for {} sequences", ids.size(), draw.uniform.size(), batch);
  HEARTH_REQUIRE(draw.vocab > 0 && draw.vocab <= config().vocab_size,
                 "tokens are drawn of {} ids, of a vocabulary of {}", draw.vocab, config().vocab_size);
  const at::Tensor hidden = executor_.infer(input_of(ids, batch), &caches);
  at::Tensor tokens = at::empty({batch}, at::TensorOptions(device()).dtype(at::kInt));
  const at::Tensor uniform = upload(draw.uniform, device());
  if (hidden.defined()) {
    const at::Tensor last = hidden.view({batch, -1, hidden.size(1)}).select(1, -1).contiguous();
    // A draw works in 8 bytes, on four such tensors.
    const int64_t chunk = rows_per_logits_chunk(batch, config().vocab_size, /*element_bytes=*/32);
    for (int64_t begin = 0; begin < batch; begin += chunk) {
      const int64_t count = std::min(chunk, batch - begin);
      const at::Tensor logits = executor_.head_chunk().logits(last.narrow(0, begin, count));
      at::Tensor drawn = tokens.narrow(0, begin, count);
      drawn.copy_(
          draw_tokens(logits.narrow(1, 0, draw.vocab).to(at::kFloat), draw, uniform.narrow(0, begin, count)));
    }
  }
  tokens = from_last_stage(std::move(tokens), "infer.tokens").to(at::kCPU);
  return {tokens.const_data_ptr<int32_t>(), tokens.const_data_ptr<int32_t>() + batch};
}

}  // namespace hearth
