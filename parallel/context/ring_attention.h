// Ring attention (Liu, Zaharia, Abbeel 2023): see README.md for what travels and when. For context_attention
// only.
#pragma once

#include "parallel/context/attention_call.h"

namespace hearth::context {

at::Tensor ring_attention(const at::Tensor& qkv_NHW, const AttentionCall& call);

}  // namespace hearth::context
