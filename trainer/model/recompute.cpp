#include "trainer/model/recompute.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

namespace hearth {
namespace {

using Piece = std::function<at::Tensor(const at::Tensor&)>;

struct KeptPiece : torch::CustomClassHolder {
  explicit KeptPiece(Piece p) : piece(std::move(p)) {}
  Piece piece;
};

struct RebuiltFn : torch::autograd::Function<RebuiltFn> {
  // Runs without a graph, as every forward of a Function does.
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x, const Piece& piece) {
    ctx->save_for_backward({x});
    ctx->saved_data["piece"] = c10::IValue::make_capsule(c10::make_intrusive<KeptPiece>(piece));
    return piece(x);
  }
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list gradients) {
    const at::AutoGradMode with_graph(true);
    const at::Tensor x = ctx->get_saved_variables()[0].detach().requires_grad_(true);
    const auto kept = c10::static_intrusive_pointer_cast<KeptPiece>(ctx->saved_data["piece"].toCapsule());
    kept->piece(x).backward(gradients[0]);
    return {x.grad(), at::Tensor()};
  }
};

}  // namespace

at::Tensor rebuilt_in_backward(const at::Tensor& x, Piece piece) {
  return RebuiltFn::apply(x, piece);
}

}  // namespace hearth
