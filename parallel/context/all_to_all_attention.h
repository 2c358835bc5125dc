// Context parallel by exchanging rows for heads (DeepSpeed Ulysses: Jacobs et al. 2023). For
// context_attention only.
#pragma once

#include "parallel/context/attention_call.h"

namespace hearth::context {

at::Tensor all_to_all_attention(const at::Tensor& qkv_NHW, const AttentionCall& call);

}  // namespace hearth::context
