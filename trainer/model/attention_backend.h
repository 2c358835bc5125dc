// Which kernels attend: chosen by one pure function, so that a choice can be tested without the device it is
// for. Thread-safe.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string_view>

namespace hearth {

// Cudnn: kernels/attention_op.h. Flash: FlashAttention-2 as LibTorch has it, repeatable where LibTorch is
// told to be. Aten: what LibTorch's scaled_dot_product_attention picks; the only one on the CPU and in fp32,
// where documents need a mask of S x S.
enum class AttentionBackend { Auto, Cudnn, Flash, Aten };

// Of training.attention_backend. Throws Error{Config} for another word.
AttentionBackend attention_backend_from_config(std::string_view word);

struct AttentionRows {
  c10::Device device;
  c10::ScalarType dtype;
  int64_t head_width, sequence;
  bool deterministic;  // the same bits in every run are asked for
};

// `setting`, or for Auto the fastest that can run such rows; never Auto. Throws Error{Config} where the
// setting cannot run them.
AttentionBackend choose_attention_backend(AttentionBackend setting, const AttentionRows& rows);

}  // namespace hearth
