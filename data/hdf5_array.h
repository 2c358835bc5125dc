// Plain arrays in HDF5 files: contiguous, unfiltered, inside the file, so that their bytes are read without
// the library. Making such files, writing rows, finding where an array lies. Only files of data/ include
// this. `path` names the file in errors. As thread-safe as the handles given.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/file_system.h"
#include "data/hdf5_handle.h"
#include "data/shard.h"

namespace hearth {

// Throws Error{Io} "cannot `doing`" for a failed call.
void check_hdf5(herr_t status, const std::string& path, const char* doing);
Hdf5Handle hdf5_property_list(hid_t kind);

// A new file, or an old one emptied; without times, so that equal input gives equal bytes.
Hdf5Handle create_hdf5(const std::string& path);
// Of one or two dimensions; all space is taken at once, so that a full disk shows here.
Hdf5Handle create_array(hid_t parent, const char* name, hid_t type, const std::vector<int64_t>& shape,
                        const std::string& path);
// Rows [first, first + rows) from `values`, which are of `memory_type`.
void write_rows(const Hdf5Handle& array, hid_t memory_type, int64_t first, int64_t rows, const void* values,
                const std::string& path);
// Makes the bytes of a closed file durable: HDF5 wrote them through a descriptor of its own.
void sync_written(FileSystem& fs, const std::string& path);

struct PlainArray {
  ByteExtent extent;
  int64_t element_bytes = 0;
  std::vector<int64_t> shape;
};
// What is expected of an array that is read raw.
struct PlainArrayRule {
  std::vector<hid_t> types;
  const char* type_names;  // for people
  int dims = 1;
  int64_t max_elements = 0;
};
// Error{BadInput} for every property that would make raw reads wrong. `size_bytes` is the file's.
PlainArray find_plain_array(hid_t file, const char* name, const PlainArrayRule& rule, int64_t size_bytes,
                            const std::string& path);

}  // namespace hearth
