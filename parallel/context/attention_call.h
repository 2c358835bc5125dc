// What ring_attention and all_to_all_attention share: their arguments, kept for the backward, and names for
// messages.
#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <string>

#include "parallel/context/context_attention.h"

namespace hearth::context {

// Checked by context_attention.
struct AttentionCall {
  int64_t num_heads = 0, num_kv_heads = 0;
  const ContextLayout* layout = nullptr;
  Comm* cp = nullptr;
  BlockKernels kernels = BlockKernels::Flash;
};

// A copy that lives as long as the graph; the layout is copied, the Comm is the caller's.
void keep_call(torch::autograd::AutogradContext* ctx, const AttentionCall& call);
// Valid as long as `ctx`.
AttentionCall kept_call(torch::autograd::AutogradContext* ctx);

std::string shape_text(const at::Tensor& tensor);  // "[8, 12, 64]"

}  // namespace hearth::context
