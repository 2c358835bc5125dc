// NF4 with double quantisation (Dettmers et al. 2023, "QLoRA", section 3), by the conventions of
// bitsandbytes: blocks of 64 values in row-major order of the whole tensor; a value's code is that of the
// nearest of 16 levels after division by the largest magnitude of its block. Those scales are quantised
// again: their mean over the tensor is taken off, and the rest becomes 8-bit codes of a dynamic map in groups
// of 256 blocks, each with the largest magnitude of the group in fp32. 4.127 bits a value. Thread-safe.
// Letters: E values (a multiple of 64), B blocks, G groups of blocks.
#pragma once

#include "kernels/nf4_table.h"
#include "kernels/op_support.h"

namespace hearth::kernels {

// Of a run of values that begins at a block.
struct Nf4Values {
  at::Tensor codes;     // uint8 [E / 2], two values a byte, the first in the high half
  at::Tensor absmax_B;  // fp32: largest magnitude of each block
};
// values: fp32 [E], contiguous, on the CPU. Throws Error{BadInput} for values that are not finite.
Nf4Values nf4_quantize_op(const at::Tensor& values_E);

// The scales of a whole tensor. Their mean is summed in fp64 (bitsandbytes: in fp32, in an order that depends
// on the device). 8-bit codes are the nearest in the map, as bitsandbytes finds them on a GPU; its CPU
// library looks them up in cells of 2^-15, which gives a neighbour once in a thousand.
struct Nf4Scales {
  at::Tensor codes_B;   // uint8
  at::Tensor groups_G;  // fp32
  float mean = 0;
};
// absmax: fp32 [B], contiguous, on the CPU.
Nf4Scales nf4_quantize_scales_op(const at::Tensor& absmax_B);
// fp32 [256], ascending, on the CPU: the signed 8-bit dynamic data type (Dettmers 2016, "8-Bit Approximations
// for Parallelism in Deep Learning"), decades 10^-6 to 1 with one more bit of fraction each.
at::Tensor nf4_dynamic_map();

// Which blocks of a whole tensor a part of it holds: block b of the part is block first + b / run * stride +
// b % run of the tensor.
struct Nf4Place {
  int64_t first = 0, run = 1, stride = 1;
};
// A part of a tensor; all on one device.
struct Nf4Part {
  at::Tensor codes;        // uint8 [E / 2]
  at::Tensor scales_B;     // uint8, of the part's blocks
  at::Tensor groups_G;     // fp32, of the whole tensor
  at::Tensor dynamic_map;  // nf4_dynamic_map()
  float mean = 0;
  Nf4Place place;
};
// out: [E] fp32 or bf16, contiguous, 16-byte aligned. Products in fp32, one rounding at the store; the same
// bits on every device.
void nf4_dequantize_op(const Nf4Part& part, at::Tensor& out_E, KernelPath path = KernelPath::Fused);

}  // namespace hearth::kernels
