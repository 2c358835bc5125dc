// Every kernel family at training shapes on one GPU, against what ATen offers for the same work: `hearth
// bench kernels`.
#pragma once

#include <string>

namespace hearth::kernels {

// Prints a table to standard output: median time, rate, share of the measured copy bandwidth, ratio to ATen;
// of the operations whose name contains `filter`. Takes up to 20 GiB of the current device. Throws
// Error{Cuda} where there is none.
void bench_kernels(const std::string& filter);

}  // namespace hearth::kernels
