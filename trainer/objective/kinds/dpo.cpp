// Direct preference optimisation (Rafailov et al. 2023; IPO: Azar et al. 2024; hinge: Zhao et al. 2023)
// against the weights that the run began from. A pair is two neighbouring documents of a sample, the chosen
// one first. Two passes over the head: log-probabilities, then the gradient with a weight per row, so that no
// set of logits is ever kept; the reference's part is one number a row.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/log_sigmoid.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "base/error.h"
#include "parallel/tensor/tensor_dtype.h"
#include "parallel/tensor/upload.h"
#include "trainer/objective/objective.h"

namespace hearth {
namespace {

// The pairs of a micro-batch.
struct Documents {
  std::vector<int64_t> of_rows;    // which document a row is of
  std::vector<uint8_t> in_a_pair;  // by document: 1 where both of its pair have trained tokens
};

Documents find_documents(const std::vector<Sample>& samples, const std::vector<int64_t>& positions) {
  Documents out;
  for (const Sample& sample : samples) {
    const auto& starts = sample.document_starts;
    HEARTH_CHECK(
        !starts.empty() && starts.front() == 0 && starts.size() % 2 == 0, BadInput,
        "dataset {}, shard {}, window {}: {} documents are no preference pairs; prepare the data with "
        "--format preference, packed to a length that divides data.seq_length",
        sample.provenance.dataset, sample.provenance.shard, sample.provenance.window, starts.size());
    const auto first = static_cast<int64_t>(out.in_a_pair.size());
    const auto document_at = [&](int64_t position) {
      return std::upper_bound(starts.begin(), starts.end(), static_cast<int32_t>(position)) - starts.begin() -
             1;
    };
    for (const int64_t position : positions) out.of_rows.push_back(first + document_at(position));
    std::vector<uint8_t> trained(starts.size(), 0);
    for (size_t t = 0; t < sample.loss_mask.size(); ++t)
      if (sample.loss_mask[t]) trained[static_cast<size_t>(document_at(static_cast<int64_t>(t)))] = 1;
    for (size_t d = 0; d < trained.size(); ++d) out.in_a_pair.push_back(trained[d] & trained[d ^ 1]);
  }
  return out;
}

class Dpo : public Objective {
 public:
  explicit Dpo(const ObjectiveInputs& in)
      : config_(in.config.objective),
        context_(in.groups.context.get()),
        context_rank_(in.groups.coordinate(MeshAxis::Cp)) {
    reference_ = in.base;
    if (reference_ != nullptr) return;
    HEARTH_CHECK(
        in.init_from != nullptr, Config,
        "objective.kind dpo needs model.init_from: the reference are the weights that the run began from");
    own_ = std::make_unique<FrozenModel>(in.init_from->config, *in.init_from->tensors, in.config, in.groups,
                                         in.device, in.memory);
    reference_ = own_.get();
  }

  std::vector<std::string> metrics() const override {
    return {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen", "logps/rejected"};
  }

  void describe(const std::vector<Sample>& samples, MicroBatch& batch) override {
    const auto sequence = static_cast<int64_t>(samples[0].loss_mask.size());
    const auto positions =
        context_positions(sequence, context_ == nullptr ? 1 : context_->size(), context_rank_);
    const Documents documents = find_documents(samples, positions);
    batch.num_documents = static_cast<int64_t>(documents.in_a_pair.size());
    batch.documents_N = upload(documents.of_rows, batch.targets_N.device());
    // The ranks that share a sequence have the same pairs.
    const auto counted = std::count(documents.in_a_pair.begin(), documents.in_a_pair.end(), 1) / 2;
    batch.valid_targets = context_rank_ == 0 ? counted : 0;
  }

  bool consults() const override { return true; }
  void consult(MicroBatch& batch) override {
    batch.frozen = reference_->logprobs(batch.input, batch.targets_N);
  }

  LossResult loss(Transformer& head, const at::Tensor& hidden_nD, const MicroBatch& batch) override {
    at::Tensor sums, weights;
    {
      const at::NoGradGuard no_grad;
      const Pairs pairs = judge(head.logprobs(hidden_nD, batch.targets_N), batch);
      sums = pairs.sums.to(at::kFloat);
      weights = pairs.weights_D.index_select(0, batch.documents_N).to(hidden_nD.scalar_type());
    }
    return linear_head_loss(hidden_nD, head.head(), num_sums(), [&](at::Tensor& logits, int64_t first) {
      const int64_t count = logits.size(0);
      chunk_cross_entropy(logits, batch.targets_N.narrow(0, first, count), head.head(), /*scale=*/1.0);
      logits.mul_(weights.narrow(0, first, count).unsqueeze(1));
      return first == 0 ? sums : at::zeros({num_sums()}, sums.options());
    });
  }

  at::Tensor evaluate(Transformer& head, const at::Tensor& hidden_nD, const MicroBatch& batch) override {
    return judge(head.logprobs(hidden_nD, batch.targets_N), batch).sums;
  }

 private:
  struct Pairs {
    at::Tensor sums;       // fp64 [num_sums]; 0 on ranks whose pairs another one counts
    at::Tensor weights_D;  // fp32 [documents]: of the gradient of a row's -log p(target)
  };
  Pairs judge(const at::Tensor& logprobs_N, const MicroBatch& batch) const {
    // Per document, over all ranks that share it: policy, reference, trained tokens.
    const at::Tensor rows = at::stack({logprobs_N, batch.frozen, batch.targets_N.ge(0).to(at::kFloat)}, 1);
    at::Tensor sums_D3 = at::zeros({batch.num_documents, 3}, rows.options().dtype(at::kDouble));
    sums_D3.index_add_(0, batch.documents_N, rows.to(at::kDouble));
    if (context_ != nullptr)
      context_->all_reduce(sums_D3.data_ptr(), sums_D3.numel(), dtype_of(sums_D3), ReduceOp::Sum, "cp.dpo")
          ->wait();
    const bool ipo = config_.pref_loss == "ipo";
    // IPO compares means over tokens, as TRL does.
    const at::Tensor length = sums_D3.select(1, 2);
    const at::Tensor per_token = ipo ? length.clamp_min(1.0).reciprocal() : at::ones_like(length);
    // A pair of which one has no trained token is none.
    const at::Tensor counts = length.view({-1, 2}).gt(0).all(1).to(at::kDouble);
    const at::Tensor policy = sums_D3.select(1, 0), reference = sums_D3.select(1, 1);
    const at::Tensor gain = policy.sub(reference).mul(per_token).view({-1, 2});  // [pairs, chosen | rejected]
    const at::Tensor margin = gain.select(1, 0).sub(gain.select(1, 1)), x = margin.mul(config_.pref_beta);
    at::Tensor loss, slope;  // slope: d loss / d margin
    if (config_.pref_loss == "sigmoid") {
      const double flip = config_.pref_label_smoothing;
      loss = at::log_sigmoid(x).mul(1.0 - flip).add(at::log_sigmoid(x.neg()), flip).neg();
      slope = at::sigmoid(x.neg()).mul(-(1.0 - flip)).add(at::sigmoid(x), flip).mul(config_.pref_beta);
    } else if (ipo) {
      const at::Tensor distance = margin.sub(1.0 / (2.0 * config_.pref_beta));
      loss = distance.square();
      slope = distance.mul(2.0);
    } else {
      loss = x.neg().add(1.0).clamp_min(0.0);
      slope = x.lt(1.0).to(at::kDouble).mul(-config_.pref_beta);
    }
    // d loss / d(-log p): minus the slope for the chosen one, plus it for the rejected one.
    slope = slope.mul(counts);
    const at::Tensor weights = at::stack({slope.neg(), slope}, 1).view({-1}).mul(per_token);
    const at::Tensor rewards = gain.mul(config_.pref_beta), logps = policy.view({-1, 2});
    const auto sum = [&](const at::Tensor& values) { return values.mul(counts).sum(); };
    at::Tensor sums =
        at::stack({sum(loss), sum(rewards.select(1, 0)), sum(rewards.select(1, 1)),
                   sum(margin.gt(0).to(at::kDouble)), sum(logps.select(1, 0)), sum(logps.select(1, 1))});
    if (context_rank_ != 0) sums.zero_();
    return {std::move(sums), weights.to(at::kFloat)};
  }

  ObjectiveConfig config_;
  Comm* context_;  // null: this rank has whole sequences
  int context_rank_;
  FrozenModel* reference_ = nullptr;
  std::unique_ptr<FrozenModel> own_;
};

}  // namespace

extern const ObjectiveKind kObjective_dpo;
const ObjectiveKind kObjective_dpo{
    "dpo", [](const ObjectiveInputs& in) -> std::unique_ptr<Objective> { return std::make_unique<Dpo>(in); }};

}  // namespace hearth
