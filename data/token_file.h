// Users' own token files: one HDF5 dataset of integers, 1-D or [N, L], any integer type, contiguous, chunked
// or compressed with HDF5's built-in filters. Read front to back in slabs. Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace hearth {

class TokenFile {
 public:
  // Error{BadInput}: not HDF5, no such dataset (the ones present are named), not integers, more than two
  // dimensions, a filter that needs a plugin, external or virtual storage.
  TokenFile(const std::string& path, const std::string& dataset);
  ~TokenFile();
  int64_t num_rows() const { return num_rows_; }      // N; the length for a 1-D dataset
  int64_t row_length() const { return row_length_; }  // L; 1 for a 1-D dataset
  bool is_flat() const { return flat_; }
  // Elements of rows [first, first + count), as 64-bit integers (values beyond saturate).
  std::vector<int64_t> read_rows(int64_t first, int64_t count) const;

 private:
  struct Hdf5;
  std::string path_, dataset_;
  std::unique_ptr<Hdf5> hdf5_;
  int64_t num_rows_ = 0, row_length_ = 1;
  bool flat_ = true;
};

}  // namespace hearth
