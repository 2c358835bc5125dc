// Version and features of the HDF5 library this program runs with, for `hearth doctor`. Thread-safe.
#pragma once

#include <string>

namespace hearth {

std::string hdf5_version();  // "1.10.8 (thread-safe)"

}  // namespace hearth
