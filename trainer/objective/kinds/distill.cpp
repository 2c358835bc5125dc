// Knowledge distillation (Hinton et al. 2015) from a teacher on the same ranks: full-vocabulary divergence in
// chunks of rows. Of the teacher a micro-batch keeps the rows behind its final norm; its logits exist for one
// chunk, beside the student's of the same chunk.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/stack.h>

#include <algorithm>

#include "base/error.h"
#include "kernels/distillation_op.h"
#include "trainer/objective/objective.h"

namespace hearth {
namespace {

kernels::DistillationLoss loss_of(const ObjectiveConfig& config) {
  using Kind = kernels::DivergenceKind;
  return {.divergence = config.kd_divergence == "forward_kl"   ? Kind::ForwardKl
                        : config.kd_divergence == "reverse_kl" ? Kind::ReverseKl
                                                               : Kind::Jsd,
          .beta = config.jsd_beta,
          .temperature = config.logit_kl_temperature,
          .kd_alpha = config.kd_alpha};
}

class Distill : public Objective {
 public:
  explicit Distill(const ObjectiveInputs& in)
      : loss_(loss_of(in.config.objective)), teacher_vocab_(in.teacher->config.vocab_size) {
    // The teacher's table is cut as the student's is, so that both have the same columns on every rank.
    ModelConfig shape = in.teacher->config;
    shape.vocab_size = in.config.model.vocab_size;
    const ResizedVocabulary tensors(*in.teacher->tensors, in.teacher->config, shape.vocab_size);
    teacher_ = std::make_unique<FrozenModel>(shape, tensors, in.config, in.groups, in.device);
  }

  std::vector<std::string> metrics() const override { return {"ce loss", "kd loss"}; }
  bool consults() const override { return true; }
  void consult(MicroBatch& batch) override { batch.frozen = teacher_->hidden(batch.input); }

  LossResult loss(Transformer& head, const at::Tensor& hidden_nD, const MicroBatch& batch) override {
    return linear_head_loss(hidden_nD, head.head(), num_sums(), chunk_loss(head, batch));
  }

  at::Tensor evaluate(Transformer& head, const at::Tensor& hidden_nD, const MicroBatch& batch) override {
    const at::Tensor hidden = head.context().rows.gather(hidden_nD, "tp.head.x").wait();
    const auto loss = chunk_loss(head, batch);
    at::Tensor sums;
    const int64_t chunk =
        rows_per_logits_chunk(hidden.size(0), head.head().linear.weight.size(0), hidden.element_size());
    head.context().before_forward(head.head().unit);
    for (int64_t begin = 0; begin < hidden.size(0); begin += chunk) {
      at::Tensor logits = head.head_rows(hidden.narrow(0, begin, std::min(chunk, hidden.size(0) - begin)));
      const at::Tensor part = loss(logits, begin).to(at::kDouble);
      sums = sums.defined() ? sums.add(part) : part;
    }
    head.context().after_forward(head.head().unit);
    return sums;
  }

 private:
  ChunkLoss chunk_loss(Transformer& head, const MicroBatch& batch) {
    const VocabWeights& table = head.head();
    const kernels::DistillationShare share{
        .first_id = table.first_id,
        .valid = table.count,
        .common = std::clamp<int64_t>(teacher_vocab_ - table.first_id, 0, table.count)};
    const RowCollectives& rows = table.context->rows;
    const kernels::GatherStatistics gather = [&rows](const at::Tensor& values) {
      return rows.size() == 1 ? values.unsqueeze(0) : rows.gather_all(values, "tp.kd");
    };
    Transformer& teacher = teacher_->head_chunk();
    const at::Tensor teacher_ND = teacher.context().rows.gather(batch.frozen, "tp.teacher.x").wait();
    const double alpha = loss_.kd_alpha, t_squared = loss_.temperature * loss_.temperature;
    return [this, share, gather, &teacher, teacher_ND, targets_N = batch.targets_N, alpha, t_squared](
               at::Tensor& logits, int64_t first) {
      const at::NoGradGuard no_grad;
      const int64_t count = logits.size(0);
      const at::Tensor theirs = teacher.head_rows(teacher_ND.narrow(0, first, count));
      const auto result =
          kernels::distillation_op(logits, theirs, targets_N.narrow(0, first, count), share, loss_, gather);
      const at::Tensor ce = result.cross_entropy_N.sum(), kd = result.divergence_N.sum();
      return at::stack({ce.mul(1.0 - alpha).add(kd, alpha * t_squared), ce, kd});
    };
  }

  kernels::DistillationLoss loss_;
  int64_t teacher_vocab_;
  std::unique_ptr<FrozenModel> teacher_;
};

}  // namespace

extern const ObjectiveKind kObjective_distill;
const ObjectiveKind kObjective_distill{
    "distill", [](const ObjectiveInputs& in) -> std::unique_ptr<Objective> {
      HEARTH_REQUIRE(in.teacher != nullptr, "distillation without a teacher");
      return std::make_unique<Distill>(in);
    }};

}  // namespace hearth
