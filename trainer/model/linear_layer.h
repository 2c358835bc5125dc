// A linear layer with or without low-rank adapters, and its gradients, over kernels/gemm_op.h: what the
// functions of block_functions.h are made of. No communication, no autograd. Weights structs belong to the
// Transformer. Letters as there; R parts x rank of the adapters. Not thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/dropout_mask.h"
#include "trainer/model/model_context.h"

namespace hearth {

// Low-rank adapters of a matrix (Hu et al. 2022): y += scale d(x) A_p^T B_p^T in the rows of each part p. R =
// parts x rank: the A of all parts are one matrix, and one dropout d of the input serves all of them.
struct LoraWeights {
  struct Part {
    int64_t first_row = 0;  // of the fused matrix
    at::Tensor b, b_grad;   // [rows, rank]
  };
  at::Tensor a, a_grad;  // [R, in]
  std::vector<Part> parts;
  int64_t rank = 0;
  double scale = 1.0;
  std::optional<kernels::DropoutMask> dropout;  // used where the rows have keys
  std::vector<int64_t> parameters;
};

// One matrix as the GEMM sees it (q, k, v together; gate, up together) and the parameters that it is made of.
struct LinearWeights {
  at::Tensor weight;     // [out, in]
  at::Tensor bias;       // [out] or undefined
  at::Tensor main_grad;  // [out, in]; undefined in inference and where the matrix is frozen
  at::Tensor bias_grad;  // [out] or undefined
  std::vector<int64_t> parameters;
  std::optional<LoraWeights> lora;
  bool trains() const { return main_grad.defined() || lora.has_value(); }
};

// What names each of the N rows in the masks of dropout, int64 [N]; undefined: nothing is dropped.
struct DropoutKeys {
  at::Tensor rows_N;
};

struct LinearOutput {
  at::Tensor y;
  at::Tensor hidden;  // scale d(x) A^T, a few columns, which backward needs again; undefined without adapters
};
// x W^T + b + residual + the adapters'.
LinearOutput linear(const at::Tensor& x, const LinearWeights& w, const DropoutKeys& keys,
                    const at::Tensor& residual = {});

// What the gradients of a linear with adapters need besides; undefined without.
struct AdapterPass {
  at::Tensor hidden;           // LinearOutput::hidden
  at::Tensor hidden_gradient;  // scale dy_p B_p, [N, R]
  DropoutKeys keys;
};
AdapterPass adapter_pass(const at::Tensor& dy, const LinearWeights& w, const at::Tensor& hidden,
                         const DropoutKeys& keys);

// dy W, and the adapters'.
at::Tensor linear_input_gradient(const at::Tensor& dy, const LinearWeights& w, const AdapterPass& pass);
// Adds to the main gradients of weight, bias and adapters, those that there are, and reports them. `own_dy`:
// the rows whose sum is the bias's gradient, where those are not all rows.
void accumulate_weight_gradient(const at::Tensor& dy, const at::Tensor& x, const LinearWeights& w,
                                const AdapterPass& pass, const ModelContext& context,
                                const at::Tensor& own_dy = {});

}  // namespace hearth
