#include "kernels/distillation_op.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <limits>

#include "kernels/cross_entropy_op.h"
#ifdef HEARTH_CUDA
#include "kernels/cuda_scope.h"
#include "kernels/distillation.h"
#endif

namespace hearth::kernels {
namespace {

// One rank's chunk and what is asked of it. The three passes of kernels/distillation.h, composed of ATen
// operations.
class PlainPasses {
 public:
  PlainPasses(at::Tensor& student_NV, const at::Tensor& teacher_NU, const at::Tensor& targets_N,
              const DistillationShare& share, const DistillationLoss& loss)
      : student_(student_NV), share_(share), loss_(loss) {
    z_ = student_NV.narrow(1, 0, share.valid).to(at::kFloat);
    z_common_ = z_.narrow(1, 0, share.common);
    teacher_ = teacher_NU.narrow(1, 0, share.common).to(at::kFloat);
    const at::Tensor targets = targets_N.to(at::kLong);
    ignored_ = targets.eq(kIgnoreIndex);
    column_ = targets.sub(share.first_id);
    here_ = column_.ge(0).logical_and(column_.lt(share.valid)).logical_and(ignored_.logical_not());
    column_ = column_.masked_fill(here_.logical_not(), 0).unsqueeze(1);
  }

  at::Tensor statistics() const {
    const auto max = [](const at::Tensor& x) {
      return x.size(1) > 0
                 ? x.amax({1})
                 : at::zeros({x.size(0)}, x.options()).fill_(-std::numeric_limits<float>::infinity());
    };
    const auto sum = [&](const at::Tensor& x, const at::Tensor& largest, double scale) {
      return x.sub(largest.unsqueeze(1)).mul(scale).exp().sum(1);
    };
    const at::Tensor max_s = max(z_), max_t = max(teacher_);
    const at::Tensor target = share_.valid > 0
                                  ? z_.gather(1, column_).squeeze(1).masked_fill(here_.logical_not(), 0.0)
                                  : at::zeros_like(max_s);
    const double scale = 1.0 / loss_.temperature;
    return at::stack({max_s, sum(z_, max_s, 1.0), target, sum(z_common_, max_s, scale), max_t,
                      sum(teacher_, max_t, scale)},
                     1);
  }

  at::Tensor sums(const at::Tensor& lse_N2) const {
    const auto [log_s, log_t] = logs(lse_N2);
    const at::Tensor zero = at::zeros({log_s.size(0)}, log_s.options());
    const auto kl = [](const at::Tensor& log_p, const at::Tensor& log_q) {
      return log_p.exp().mul(log_p.sub(log_q)).sum(1);
    };
    at::Tensor first = zero, second = zero;
    switch (loss_.divergence) {
      case DivergenceKind::ForwardKl:
        first = kl(log_t, log_s);
        break;
      case DivergenceKind::ReverseKl:
        second = kl(log_s, log_t);
        break;
      case DivergenceKind::Jsd: {
        const at::Tensor log_m = log_mixture(log_s, log_t);
        first = kl(log_t, log_m), second = kl(log_s, log_m);
      }
    }
    return at::stack({first, second}, 1).masked_fill(ignored_.unsqueeze(1), 0.0);
  }

  // Where the teacher is not here as logits: column 1 of the inputs is the factor of a row.
  void given_gradient(const at::Tensor& inputs_N4, double cross_entropy_scale,
                      double divergence_scale) const {
    const at::Tensor s = z_common_.div(loss_.temperature).sub(inputs_N4.select(1, 0).unsqueeze(1)).exp();
    write_gradient(inputs_N4, cross_entropy_scale, s.mul(inputs_N4.select(1, 1).unsqueeze(1)),
                   divergence_scale);
  }

  void gradient(const at::Tensor& inputs_N4, double cross_entropy_scale, double divergence_scale) const {
    const auto [log_s, log_t] = logs(inputs_N4);
    const at::Tensor second = inputs_N4.select(1, 2).unsqueeze(1), s = log_s.exp();
    at::Tensor d;
    switch (loss_.divergence) {
      case DivergenceKind::ForwardKl:
        d = s.sub(log_t.exp());
        break;
      case DivergenceKind::ReverseKl:
        d = s.mul(log_s.sub(log_t).sub(second));
        break;
      case DivergenceKind::Jsd:
        d = s.mul(log_s.sub(log_mixture(log_s, log_t)).sub(second)).mul(1.0 - loss_.beta);
    }
    write_gradient(inputs_N4, cross_entropy_scale, d, divergence_scale);
  }

 private:
  // d: of the common columns.
  void write_gradient(const at::Tensor& inputs_N4, double cross_entropy_scale, const at::Tensor& d,
                      double divergence_scale) const {
    at::Tensor g = z_.sub(inputs_N4.select(1, 3).unsqueeze(1)).exp();
    if (share_.valid > 0) g.scatter_add_(1, column_, here_.to(at::kFloat).neg().unsqueeze(1));
    g.mul_(cross_entropy_scale);
    g.narrow(1, 0, share_.common).add_(d, divergence_scale);
    student_.zero_();
    student_.narrow(1, 0, share_.valid).copy_(g.masked_fill(ignored_.unsqueeze(1), 0.0));
  }

  struct Logs {
    at::Tensor student, teacher;
  };
  // log probabilities at the temperature; columns 0 and 1 of `lse` are the two normalisers.
  Logs logs(const at::Tensor& lse) const {
    return {z_common_.div(loss_.temperature).sub(lse.select(1, 0).unsqueeze(1)),
            teacher_.div(loss_.temperature).sub(lse.select(1, 1).unsqueeze(1))};
  }
  at::Tensor log_mixture(const at::Tensor& log_s, const at::Tensor& log_t) const {
    return at::logaddexp(log_t.add(std::log(loss_.beta)), log_s.add(std::log1p(-loss_.beta)));
  }

  at::Tensor& student_;
  DistillationShare share_;
  DistillationLoss loss_;
  at::Tensor z_, z_common_, teacher_, ignored_, column_, here_;
};

#ifdef HEARTH_CUDA
// The same passes as launches.
class FusedPasses {
 public:
  FusedPasses(at::Tensor& student_NV, const at::Tensor& teacher_NU, const at::Tensor& targets_N,
              const DistillationShare& share, const DistillationLoss& loss)
      : scope_(student_NV), options_(student_NV.options().dtype(at::kFloat)) {
    args_ = {.dtype = kernel_dtype(student_NV),
             .student = student_NV.data_ptr(),
             .teacher = teacher_NU.const_data_ptr(),
             .targets = targets_N.const_data_ptr(),
             .targets_dtype = targets_N.scalar_type() == at::kLong ? DType::I64 : DType::I32,
             .rows = student_NV.size(0),
             .cols = student_NV.size(1),
             .student_stride = student_NV.stride(0),
             .teacher_stride = teacher_NU.stride(0),
             .valid = share.valid,
             .common = share.common,
             .first_id = share.first_id,
             .ignore_index = kIgnoreIndex,
             .inverse_temperature = static_cast<float>(1.0 / loss.temperature),
             .divergence = loss.divergence == DivergenceKind::ForwardKl   ? Divergence::ForwardKl
                           : loss.divergence == DivergenceKind::ReverseKl ? Divergence::ReverseKl
                                                                          : Divergence::Jsd,
             .beta = static_cast<float>(loss.beta)};
  }
  at::Tensor statistics() {
    at::Tensor out = at::empty({args_.rows, 6}, options_);
    args_.out = out.data_ptr<float>();
    distillation_statistics(args_, scope_.stream());
    return out;
  }
  at::Tensor sums(const at::Tensor& lse_N2) {
    at::Tensor out = at::empty({args_.rows, 2}, options_);
    const at::Tensor inputs = lse_N2.contiguous();
    args_.inputs = inputs.const_data_ptr<float>();
    args_.out = out.data_ptr<float>();
    distillation_sums(args_, scope_.stream());
    return out;
  }
  void given_gradient(const at::Tensor& inputs_N4, double cross_entropy_scale, double divergence_scale) {
    args_.divergence = Divergence::Given;
    gradient(inputs_N4, cross_entropy_scale, divergence_scale);
  }
  void gradient(const at::Tensor& inputs_N4, double cross_entropy_scale, double divergence_scale) {
    const at::Tensor inputs = inputs_N4.contiguous();
    args_.inputs = inputs.const_data_ptr<float>();
    args_.cross_entropy_scale = static_cast<float>(cross_entropy_scale);
    args_.divergence_scale = static_cast<float>(divergence_scale);
    distillation_gradient(args_, scope_.stream());
  }

 private:
  CudaScope scope_;
  at::TensorOptions options_;
  DistillationArgs args_;
};
#endif

// logsumexp over the shares of (largest, sum of exp((z - largest) x scale)), times nothing: of z x scale.
at::Tensor joined_lse(const at::Tensor& max_TN, const at::Tensor& sum_TN, double scale) {
  const at::Tensor max_N = max_TN.amax({0});
  return sum_TN.mul(max_TN.sub(max_N).mul(scale).exp()).sum(0).log_().add(max_N, scale);
}

// Of kd_alpha T^2 D in the logits: u = z / T takes one T.
double logit_scale(const DistillationLoss& loss) {
  return loss.kd_alpha * loss.temperature;
}

template <class Passes>
DistillationResult run(Passes& passes, const at::Tensor& targets_N, const DistillationLoss& loss,
                       const GatherStatistics& gather) {
  const at::Tensor stats = gather(passes.statistics());  // [T, N, 6]
  const auto column = [&](int64_t i) { return stats.select(2, i); };
  const double scale = 1.0 / loss.temperature;
  const at::Tensor ignored = targets_N.to(at::kLong).eq(kIgnoreIndex);
  const at::Tensor lse = joined_lse(column(0), column(1), 1.0);
  const at::Tensor lse_s = joined_lse(column(0), column(3), scale),
                   lse_t = joined_lse(column(4), column(5), scale);
  const at::Tensor sums = gather(passes.sums(at::stack({lse_s, lse_t}, 1))).sum(0);  // [N, 2]
  const at::Tensor first = sums.select(1, 0), second = sums.select(1, 1);
  passes.gradient(at::stack({lse_s, lse_t, second, lse}, 1), 1.0 - loss.kd_alpha, logit_scale(loss));
  at::Tensor divergence = loss.divergence == DivergenceKind::Jsd
                              ? first.mul(loss.beta).add(second, 1.0 - loss.beta)
                              : first.add(second);
  return {lse.sub(column(2).sum(0)).masked_fill_(ignored, 0.0), divergence.masked_fill(ignored, 0.0)};
}

// `student` is still logits when this begins.
template <class Passes>
DistillationResult run_kept(Passes& passes, at::Tensor& student, const KeptTeacher& teacher,
                            const at::Tensor& targets_N, const DistillationShare& share,
                            const DistillationLoss& loss, const GatherStatistics& gather) {
  const double scale = 1.0 / loss.temperature;
  const at::Tensor stats =
      gather(passes.statistics());  // [T, N, 6]; the teacher's columns are the student's here
  const auto column = [&](int64_t i) { return stats.select(2, i); };
  const at::Tensor lse = joined_lse(column(0), column(1), 1.0),
                   lse_s = joined_lse(column(0), column(3), scale);
  const at::Tensor ignored = targets_N.to(at::kLong).eq(kIgnoreIndex);
  // Kept ids that are among this rank's columns; the other ranks add theirs.
  const at::Tensor place = teacher.ids_NK.sub(share.first_id);
  const at::Tensor here = place.ge(0).logical_and(place.lt(share.common));
  const at::Tensor columns = place.masked_fill(here.logical_not(), 0);
  const at::Tensor z_here =
      share.common > 0 ? student.gather(1, columns).to(at::kFloat) : at::zeros_like(teacher.logprobs_NK);
  const at::Tensor log_s_here = z_here.mul(scale).sub(lse_s.unsqueeze(1));
  const at::Tensor s_here = log_s_here.exp().masked_fill(here.logical_not(), 0.0);
  const at::Tensor t = teacher.logprobs_NK.exp();
  // t (log t - log s), 0 where t is 0.
  const at::Tensor terms = t.mul(teacher.logprobs_NK.sub(log_s_here));
  const at::Tensor mine = terms.masked_fill(here.logical_not().logical_or(t.eq(0)), 0.0);
  const at::Tensor sums = gather(at::stack({mine.sum(1), s_here.sum(1)}, 1)).sum(0);  // [N, 2]
  const at::Tensor t_tail = teacher.tail_mass_N, has_tail = t_tail.gt(0);
  const at::Tensor s_tail = sums.select(1, 1).neg().add(1.0).clamp_min(std::numeric_limits<float>::epsilon());
  const at::Tensor tail_term =
      t_tail.mul(t_tail.log().sub(s_tail.log())).masked_fill(has_tail.logical_not(), 0.0);
  // d/du of a column outside the kept ones: s (1 - t_tail / s_tail); of a kept one: s - t.
  const at::Tensor ratio = t_tail.div(s_tail).masked_fill(has_tail.logical_not(), 0.0);
  const at::Tensor mass = t.sum(1).add(t_tail);  // 1 to rounding, or what a damaged row holds
  const double divergence_scale = logit_scale(loss);
  passes.given_gradient(at::stack({lse_s, mass.sub(ratio), sums.select(1, 1), lse}, 1), 1.0 - loss.kd_alpha,
                        divergence_scale);
  // Columns of kept ids are written whole, from fp32: a difference to what is there would be all rounding in
  // bf16.
  if (share.common > 0) {
    const at::Tensor is_target = teacher.ids_NK.eq(targets_N.to(at::kLong).unsqueeze(1)).to(at::kFloat);
    const at::Tensor exact = z_here.sub(lse.unsqueeze(1))
                                 .exp()
                                 .sub(is_target)
                                 .mul(1.0 - loss.kd_alpha)
                                 .add(s_here.mul(mass.unsqueeze(1)).sub(t), divergence_scale);
    // Ids of other ranks write to column 0 what it holds anyway.
    const at::Tensor at_first = here.logical_and(place.eq(0));
    const at::Tensor first =
        at::where(at_first.any(1), exact.mul(at_first).sum(1), student.select(1, 0).to(at::kFloat));
    student.scatter_(1, columns,
                     at::where(here, exact, first.unsqueeze(1))
                         .masked_fill(ignored.unsqueeze(1), 0.0)
                         .to(student.scalar_type()));
  }
  return {lse.sub(column(2).sum(0)).masked_fill_(ignored, 0.0),
          sums.select(1, 0).add(tail_term).masked_fill(ignored, 0.0)};
}

void check_inputs(const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& targets,
                  const DistillationShare& share, const DistillationLoss& loss) {
  constexpr const char* kOp = "distillation";
  check_activation(kOp, "student", student, 2);
  check_activation(kOp, "teacher", teacher, 2);
  check_ids(kOp, "targets", targets, student.size(0), student);
  HEARTH_REQUIRE(teacher.size(0) == student.size(0) && teacher.scalar_type() == student.scalar_type() &&
                     teacher.device() == student.device(),
                 "{}: teacher {} and student {} must have the same rows, dtype and device", kOp,
                 describe(teacher), describe(student));
  HEARTH_REQUIRE(0 <= share.common && share.common <= share.valid && share.valid <= student.size(1) &&
                     share.common <= teacher.size(1),
                 "{}: common {} and valid {} columns do not fit student {} and teacher {}", kOp, share.common,
                 share.valid, describe(student), describe(teacher));
  HEARTH_REQUIRE(loss.temperature > 0 && 0 <= loss.kd_alpha && loss.kd_alpha <= 1,
                 "{}: temperature {}, kd_alpha {}", kOp, loss.temperature, loss.kd_alpha);
  HEARTH_REQUIRE(loss.divergence != DivergenceKind::Jsd || (loss.beta > 0 && loss.beta < 1),
                 "{}: beta {} of the Jensen-Shannon divergence must be in (0, 1)", kOp, loss.beta);
}

}  // namespace

DistillationResult distillation_op(at::Tensor& student_NV, const at::Tensor& teacher_NU,
                                   const at::Tensor& targets_N, const DistillationShare& share,
                                   const DistillationLoss& loss, const GatherStatistics& gather,
                                   KernelPath path) {
  check_inputs(student_NV, teacher_NU, targets_N, share, loss);
#ifdef HEARTH_CUDA
  if (path == KernelPath::Fused && student_NV.is_cuda()) {
    FusedPasses passes(student_NV, teacher_NU, targets_N, share, loss);
    return run(passes, targets_N, loss, gather);
  }
#endif
  static_cast<void>(
      path);  // the CPU has the plain path alone: distillation there is for tests and small models
  PlainPasses passes(student_NV, teacher_NU, targets_N, share, loss);
  return run(passes, targets_N, loss, gather);
}

DistillationResult kept_distillation_op(at::Tensor& student_NV, const KeptTeacher& teacher,
                                        const at::Tensor& targets_N, const DistillationShare& share,
                                        const DistillationLoss& loss, const GatherStatistics& gather,
                                        KernelPath path) {
  check_inputs(student_NV, student_NV, targets_N, share, loss);
  HEARTH_REQUIRE(loss.divergence == DivergenceKind::ForwardKl,
                 "kept_distillation: of a kept teacher only the forward KL is known");
  HEARTH_REQUIRE(teacher.ids_NK.dim() == 2 && teacher.ids_NK.scalar_type() == at::kLong &&
                     teacher.ids_NK.size(0) == student_NV.size(0) &&
                     teacher.logprobs_NK.sizes() == teacher.ids_NK.sizes() &&
                     teacher.logprobs_NK.scalar_type() == at::kFloat,
                 "kept_distillation: ids {} and log-probabilities {} do not fit student {}",
                 describe(teacher.ids_NK), describe(teacher.logprobs_NK), describe(student_NV));
  check_fp32_flat("kept_distillation", "tail_mass", teacher.tail_mass_N, student_NV.size(0), student_NV);
#ifdef HEARTH_CUDA
  if (path == KernelPath::Fused && student_NV.is_cuda()) {
    FusedPasses passes(student_NV, student_NV, targets_N, share, loss);
    return run_kept(passes, student_NV, teacher, targets_N, share, loss, gather);
  }
#endif
  static_cast<void>(path);
  PlainPasses passes(student_NV, student_NV, targets_N, share, loss);
  return run_kept(passes, student_NV, teacher, targets_N, share, loss, gather);
}

}  // namespace hearth::kernels
