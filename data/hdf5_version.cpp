#include "data/hdf5_version.h"

#include <fmt/core.h>
#include <hdf5.h>

namespace hearth {

std::string hdf5_version() {
  unsigned major = 0, minor = 0, release = 0;
  hbool_t thread_safe = 0;
  if (H5get_libversion(&major, &minor, &release) < 0 || H5is_library_threadsafe(&thread_safe) < 0)
    return "unknown";
  return fmt::format("{}.{}.{} ({})", major, minor, release,
                     thread_safe ? "thread-safe" : "one thread at a time");
}

}  // namespace hearth
