#include "trainer/model/state_loss.h"

#include <torch/csrc/autograd/custom_function.h>

#include "base/error.h"

namespace hearth {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr double kSmallest = 1e-12;  // of a norm that is divided by

// Of each row, fp32, keeping the feature dimension.
struct Angle {
  Tensor x, t, x_norm, t_norm, cosine;
};
Angle angle(const Tensor& x_nD, const Tensor& target_nD) {
  const Tensor x = x_nD.to(at::kFloat), t = target_nD.to(at::kFloat);
  const Tensor x_norm = x.norm(2, -1, true).clamp_min(kSmallest),
               t_norm = t.norm(2, -1, true).clamp_min(kSmallest);
  return {x, t, x_norm, t_norm, x.mul(t).sum(-1, true).div(x_norm).div(t_norm)};
}

Tensor row_losses(const Tensor& x_nD, const StateTarget& target) {
  if (target.kind == StateLossKind::Mse)
    return x_nD.to(at::kFloat).sub(target.target_nD.to(at::kFloat)).square().mean(-1);
  return angle(x_nD, target.target_nD).cosine.squeeze(-1).neg().add(1.0);
}

Tensor row_gradients(const Tensor& x_nD, const Tensor& target_nD, StateLossKind kind) {
  if (kind == StateLossKind::Mse)
    return x_nD.to(at::kFloat).sub(target_nD.to(at::kFloat)).mul(2.0 / static_cast<double>(x_nD.size(-1)));
  const Angle a = angle(x_nD, target_nD);
  return a.x.mul(a.cosine).div(a.x_norm).sub(a.t.div(a.t_norm)).div(a.x_norm);
}

struct StateLossFn : torch::autograd::Function<StateLossFn> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_nD, const StateTarget& target, StateSum sum) {
    if (sum == StateSum::Add && target.sum.defined()) {
      Tensor total = target.sum;
      total.add_(row_losses(x_nD, target).mul(target.counts_n).sum(), target.weight);
    }
    ctx->save_for_backward({x_nD, target.target_nD, target.counts_n});
    ctx->saved_data["kind"] = static_cast<int64_t>(target.kind);
    ctx->saved_data["weight"] = target.weight;
    return x_nD;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto kind = static_cast<StateLossKind>(ctx->saved_data["kind"].toInt());
    const Tensor own = row_gradients(saved[0], saved[1], kind)
                           .mul_(saved[2].unsqueeze(1))
                           .mul_(ctx->saved_data["weight"].toDouble());
    return {grads[0].to(at::kFloat).add(own).to(grads[0].scalar_type()), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor with_state_loss(const Tensor& x_nD, const StateTarget& target, StateSum sum) {
  HEARTH_ASSERT(x_nD.sizes() == target.target_nD.sizes() && target.counts_n.size(0) == x_nD.size(0));
  return StateLossFn::apply(x_nD, target, sum);
}

}  // namespace hearth
