#include "data/hdf5_handle.h"

#include <fmt/format.h>

namespace hearth {

namespace {

// HDF5 describes a failed system call with time stamps and addresses; only "errno = 28, error message =
// '...'" is of use.
std::string without_noise(std::string reason) {
  const size_t number = reason.find("errno = ");
  if (number != std::string::npos) reason = reason.substr(number, reason.find("', ", number) + 1 - number);
  return reason.substr(0, reason.find('\n'));
}

}  // namespace

void require_hdf5() {
  // Every file is closed by its owner. HDF5's own clean-up at exit crashes after a close that failed on a
  // full disk (1.10.8), which would turn exit code 9 into a signal. Must be the first call; later ones change
  // nothing.
  H5dont_atexit();
  hbool_t thread_safe = false;
  HEARTH_CHECK(H5is_library_threadsafe(&thread_safe) >= 0 && thread_safe, Io,
               "this HDF5 library is not thread-safe; install the distribution's libhdf5, which is");
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);  // errors are reported as exceptions, once
  H5PLset_loading_state(0);
}

void fail_hdf5(ErrorKind kind, std::string_view message) {
  std::string reason;
  // Upward: the first entry is the innermost, which names the system call or the damaged structure.
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned, const H5E_error2_t* entry, void* out) -> herr_t {
        auto& text = *static_cast<std::string*>(out);
        if (text.empty() && entry->desc != nullptr) text = entry->desc;
        return 0;
      },
      &reason);
  H5Eclear2(H5E_DEFAULT);
  const bool full = reason.find("errno = 28") != std::string::npos ||
                    reason.find("errno = 122") != std::string::npos ||
                    reason.find("errno = 27") != std::string::npos;  // ENOSPC, EDQUOT, EFBIG
  fail(full ? ErrorKind::NoSpace : kind, "{}{}{}", message, reason.empty() ? "" : ": HDF5 says ",
       without_noise(reason));
}

Hdf5Handle open_hdf5_read_only(const std::string& path) {
  require_hdf5();
  const Hdf5Handle access = own(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, ErrorKind::Internal, "H5Pcreate");
  if (H5Pset_file_locking(access.get(), false, true) < 0)
    fail_hdf5(ErrorKind::Internal, "H5Pset_file_locking");
  return own(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), H5Fclose, ErrorKind::BadInput,
             fmt::format("{}: not a readable HDF5 file", path));
}

}  // namespace hearth
