// Activation recompute: a piece of the forward pass keeps only its input, and backward runs it again (Chen et
// al. 2016, "Training Deep Nets with Sublinear Memory Cost").
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace hearth {

// piece(x), differentiable in x. `piece` runs once now and once in backward, there with a graph; it must give
// the same values both times, and all it refers to must live that long. Weight gradients are added in
// backward as ever.
at::Tensor rebuilt_in_backward(const at::Tensor& x, std::function<at::Tensor(const at::Tensor&)> piece);

}  // namespace hearth
