// RAII for HDF5 identifiers and one way to turn the library's error stack into Error. Only files of data/
// include this. HDF5 serialises its calls itself (Debian and Ubuntu build it thread-safe); require_hdf5()
// refuses a build that does not.
#pragma once

#include <hdf5.h>

#include <string>
#include <string_view>
#include <utility>

#include "base/error.h"

namespace hearth {

// Owns an identifier of any kind and closes it with the function given at construction.
class Hdf5Handle {
 public:
  using Close = herr_t (*)(hid_t);
  Hdf5Handle(hid_t id, Close close) : id_(id), close_(close) {}
  ~Hdf5Handle() { reset(); }
  Hdf5Handle(Hdf5Handle&& other) noexcept : id_(std::exchange(other.id_, -1)), close_(other.close_) {}
  Hdf5Handle& operator=(Hdf5Handle&&) = delete;
  hid_t get() const { return id_; }
  bool valid() const { return id_ >= 0; }
  // Closes now and says whether that worked: a delayed write may fail here.
  bool reset() { return id_ < 0 || close_(std::exchange(id_, -1)) >= 0; }

 private:
  hid_t id_;
  Close close_;
};

// To be called before any other HDF5 call of a thread: checks that the library is thread-safe, switches off
// its printing of errors and the loading of filter plugins from disk (a file must not choose code to run).
void require_hdf5();

// Throws Error{kind} with `message` and the innermost reason from HDF5's error stack; a full disk is NoSpace
// whatever `kind` says.
[[noreturn]] void fail_hdf5(ErrorKind kind, std::string_view message);

// Opens read-only with file locking off (shards are immutable, and locks fail on many cluster file systems).
Hdf5Handle open_hdf5_read_only(const std::string& path);

// Throws unless `id` is valid, then owns it.
inline Hdf5Handle own(hid_t id, Hdf5Handle::Close close, ErrorKind kind, std::string_view message) {
  if (id < 0) fail_hdf5(kind, message);
  return Hdf5Handle(id, close);
}

}  // namespace hearth
