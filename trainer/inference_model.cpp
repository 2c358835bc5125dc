#include "trainer/inference_model.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

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
  if (pipeline_ != nullptr)
    pipeline_->broadcast(values.data_ptr(), values.numel(), dtype_of(values), executor_.head_rank(), site)
        ->wait();
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

std::vector<KvCache> InferenceModel::make_caches(int64_t capacity) const {
  std::vector<KvCache> caches;
  for (const Transformer* chunk : chunks_) caches.push_back(chunk->make_cache(capacity));
  return caches;
}

at::Tensor InferenceModel::logits(const std::vector<int64_t>& ids, std::vector<KvCache>* caches,
                                  int64_t last) {
  const at::NoGradGuard no_grad;
  const WholeRows whole(chunks_);
  ModelInput input;
  input.ids_N = at::tensor(ids, at::kLong).to(device());
  input.layout.batch = 1;
  input.layout.sequence = static_cast<int64_t>(ids.size());
  const at::Tensor hidden = executor_.infer(input, caches);
  at::Tensor rows =
      hidden.defined()
          ? executor_.head_chunk().logits(hidden.narrow(0, hidden.size(0) - last, last)).to(at::kFloat)
          : at::empty({last, config().vocab_size}, at::TensorOptions(device()).dtype(at::kFloat));
  return from_last_stage(rows.contiguous(), "infer.logits").to(at::kCPU);
}

}  // namespace hearth
