// Of a few timings: what benchmarks report. Pure, thread-safe.
#pragma once

#include <vector>

namespace hearth {

// The value below which a share `q` of the values lies, between the two nearest: 0.5 is the median. Throws
// Error{Usage} for no values.
double quantile(std::vector<double> values, double q);

}  // namespace hearth
