#include "data/hdf5_array.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace hearth {
namespace {

// Arrays start on a page, so that a block of tokens is read in whole pages.
constexpr hsize_t kAlignment = 4096;
constexpr size_t kMaxDims = 2;

Hdf5Handle simple_space(const std::vector<hsize_t>& size) {
  return own(H5Screate_simple(static_cast<int>(size.size()), size.data(), nullptr), H5Sclose,
             ErrorKind::Internal, "H5Screate_simple");
}

std::vector<hsize_t> size_of(const Hdf5Handle& space) {
  std::vector<hsize_t> size(static_cast<size_t>(std::max(0, H5Sget_simple_extent_ndims(space.get()))));
  if (!size.empty()) H5Sget_simple_extent_dims(space.get(), size.data(), nullptr);
  return size;
}

}  // namespace

void check_hdf5(herr_t status, const std::string& path, const char* doing) {
  if (status < 0) fail_hdf5(ErrorKind::Io, fmt::format("{}: cannot {}", path, doing));
}

Hdf5Handle hdf5_property_list(hid_t kind) {
  return own(H5Pcreate(kind), H5Pclose, ErrorKind::Internal, "H5Pcreate");
}

Hdf5Handle create_hdf5(const std::string& path) {
  require_hdf5();
  const Hdf5Handle creation = hdf5_property_list(H5P_FILE_CREATE),
                   access = hdf5_property_list(H5P_FILE_ACCESS);
  check_hdf5(H5Pset_obj_track_times(creation.get(), false), path, "switch off time stamps");
  check_hdf5(H5Pset_file_locking(access.get(), false, true), path, "switch off locking");
  check_hdf5(H5Pset_alignment(access.get(), kAlignment, kAlignment), path, "set the alignment");
  return own(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation.get(), access.get()), H5Fclose, ErrorKind::Io,
             fmt::format("{}: cannot create", path));
}

Hdf5Handle create_array(hid_t parent, const char* name, hid_t type, const std::vector<int64_t>& shape,
                        const std::string& path) {
  HEARTH_ASSERT(!shape.empty() && shape.size() <= kMaxDims);
  const Hdf5Handle space = simple_space({shape.begin(), shape.end()});
  const Hdf5Handle creation = hdf5_property_list(H5P_DATASET_CREATE);
  check_hdf5(H5Pset_obj_track_times(creation.get(), false), path, "switch off time stamps");
  check_hdf5(H5Pset_layout(creation.get(), H5D_CONTIGUOUS), path, "set the layout");
  check_hdf5(H5Pset_alloc_time(creation.get(), H5D_ALLOC_TIME_EARLY), path, "set the allocation time");
  check_hdf5(H5Pset_fill_time(creation.get(), H5D_FILL_TIME_NEVER), path,
             "set the fill time");  // all of it is written
  return own(H5Dcreate2(parent, name, type, space.get(), H5P_DEFAULT, creation.get(), H5P_DEFAULT), H5Dclose,
             ErrorKind::Io,
             fmt::format("{}: cannot create dataset {} of {} elements", path, name, fmt::join(shape, " x ")));
}

void write_rows(const Hdf5Handle& array, hid_t memory_type, int64_t first, int64_t rows, const void* values,
                const std::string& path) {
  const auto space = own(H5Dget_space(array.get()), H5Sclose, ErrorKind::Internal, "H5Dget_space");
  std::vector<hsize_t> count = size_of(space), start(count.size(), 0);
  start[0] = static_cast<hsize_t>(first);
  count[0] = static_cast<hsize_t>(rows);
  const Hdf5Handle memory = simple_space(count);
  check_hdf5(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr),
             path, "select rows");
  check_hdf5(H5Dwrite(array.get(), memory_type, memory.get(), space.get(), H5P_DEFAULT, values), path,
             "write rows");
}

void sync_written(FileSystem& fs, const std::string& path) {
  const auto file = fs.create(path, CreateMode::Append);
  file->sync();
  file->close();
}

PlainArray find_plain_array(hid_t file, const char* name, const PlainArrayRule& rule, int64_t size_bytes,
                            const std::string& path) {
  const auto id = own(H5Dopen2(file, name, H5P_DEFAULT), H5Dclose, ErrorKind::BadInput,
                      fmt::format("{}: cannot open dataset {}", path, name));
  const auto create = own(H5Dget_create_plist(id.get()), H5Pclose, ErrorKind::BadInput, path);
  HEARTH_CHECK(H5Pget_layout(create.get()) == H5D_CONTIGUOUS, BadInput,
               "{}:{}: layout is not contiguous (chunked, compact or virtual); convert it with `hearth "
               "data prepare`",
               path, name);
  HEARTH_CHECK(H5Pget_external_count(create.get()) == 0, BadInput,
               "{}:{}: data lies in an external file; refused", path, name);
  HEARTH_CHECK(H5Pget_nfilters(create.get()) == 0, BadInput, "{}:{}: has filters (compression); refused",
               path, name);
  const auto type = own(H5Dget_type(id.get()), H5Tclose, ErrorKind::BadInput, path);
  const bool known =
      std::any_of(rule.types.begin(), rule.types.end(), [&](hid_t t) { return H5Tequal(type.get(), t) > 0; });
  HEARTH_CHECK(known, BadInput, "{}:{}: element type is not little-endian {}", path, name, rule.type_names);
  const auto space = own(H5Dget_space(id.get()), H5Sclose, ErrorKind::BadInput, path);
  const std::vector<hsize_t> size = size_of(space);
  HEARTH_CHECK(static_cast<int>(size.size()) == rule.dims, BadInput, "{}:{}: has {} dimensions, expected {}",
               path, name, size.size(), rule.dims);
  const auto most = static_cast<hsize_t>(rule.max_elements);
  hsize_t count = 1;
  bool fits = true;  // within max_elements, and so without overflow
  for (const hsize_t dim : size) {
    fits = fits && dim > 0 && dim <= most / count;
    if (fits) count *= dim;
  }
  HEARTH_CHECK(fits, BadInput, "{}:{}: has {} elements, expected 1 to {}", path, name, fmt::join(size, " x "),
               rule.max_elements);
  PlainArray array;
  array.element_bytes = static_cast<int64_t>(H5Tget_size(type.get()));
  array.shape.assign(size.begin(), size.end());
  const haddr_t offset = H5Dget_offset(id.get());
  const int64_t bytes = static_cast<int64_t>(count) * array.element_bytes;
  HEARTH_CHECK(offset != HADDR_UNDEF && offset <= static_cast<haddr_t>(size_bytes) &&
                   bytes <= size_bytes - static_cast<int64_t>(offset),
               BadInput, "{}:{}: {} bytes at offset {} do not lie inside the file of {} bytes", path, name,
               bytes, offset == HADDR_UNDEF ? -1 : static_cast<int64_t>(offset), size_bytes);
  array.extent = {static_cast<int64_t>(offset), bytes};
  return array;
}

}  // namespace hearth
