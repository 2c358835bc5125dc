// What a gradient operation does to the matrix that it is given. No torch; a value.
#pragma once

namespace hearth::kernels {

// Overwrite: the first contribution to a sum, whose buffer nobody has cleared; what it holds is not read, NaN
// included.
enum class GradientWrite { Add, Overwrite };

}  // namespace hearth::kernels
