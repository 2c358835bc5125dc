// Element-wise reduction of several host buffers in the order given, so that a result does not depend on the
// message pattern that brought the buffers together. Pure; thread-safe.
#pragma once

#include <cstdint>
#include <span>

#include "base/dtype.h"
#include "parallel/comm.h"

namespace hearth {

// True for F64, F32, F16, BF16, I64, I32.
bool is_reducible(DType dtype);

// out[i] = ((in[0][i] op in[1][i]) op in[2][i]) ...  F16 and BF16 accumulate in fp32 and are rounded once;
// F32 and F64 accumulate in their own type; integer sums wrap. Max keeps a NaN. `out` may be one of the
// inputs.
void reduce_in_order(std::span<const void* const> in, void* out, int64_t count, DType dtype, ReduceOp op);

}  // namespace hearth
