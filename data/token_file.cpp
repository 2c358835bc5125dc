#include "data/token_file.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "data/hdf5_handle.h"

namespace hearth {
namespace {

herr_t collect_name(hid_t, const char* name, const H5L_info_t*, void* out) {
  auto& names = *static_cast<std::vector<std::string>*>(out);
  names.emplace_back(name);
  return names.size() >= 20 ? 1 : 0;
}

std::string names_in(hid_t file) {
  std::vector<std::string> names;
  H5Literate(file, H5_INDEX_NAME, H5_ITER_INC, nullptr, collect_name, &names);
  return fmt::format("{}", fmt::join(names, ", "));
}

// Every filter must be one that the library itself has: plugins are not loaded.
void check_storage(hid_t dataset, const std::string& where) {
  const Hdf5Handle creation = own(H5Dget_create_plist(dataset), H5Pclose, ErrorKind::BadInput, where);
  HEARTH_CHECK(H5Pget_layout(creation.get()) != H5D_VIRTUAL && H5Pget_external_count(creation.get()) == 0,
               BadInput, "{}: virtual or external storage is refused; copy the data into one file", where);
  for (int i = 0; i < H5Pget_nfilters(creation.get()); ++i) {
    unsigned flags = 0;
    size_t num_values = 0;
    char name[64] = {};
    const H5Z_filter_t filter = H5Pget_filter2(creation.get(), static_cast<unsigned>(i), &flags, &num_values,
                                               nullptr, sizeof(name), name, nullptr);
    HEARTH_CHECK(filter >= 0 && H5Zfilter_avail(filter) > 0, BadInput,
                 "{}: compressed with filter {} '{}', which this HDF5 library lacks; rewrite it with gzip",
                 where, filter, name);
  }
}

}  // namespace

struct TokenFile::Hdf5 {
  Hdf5Handle file, dataset;
};

TokenFile::TokenFile(const std::string& path, const std::string& dataset) : path_(path), dataset_(dataset) {
  Hdf5Handle file = open_hdf5_read_only(path);
  const hid_t opened = H5Dopen2(file.get(), dataset.c_str(), H5P_DEFAULT);
  if (opened < 0) {
    fail_hdf5(ErrorKind::BadInput,
              fmt::format("{}: no dataset '{}'; the file has: {} (choose with --dataset)", path, dataset,
                          names_in(file.get())));
  }
  Hdf5Handle data(opened, H5Dclose);
  const std::string where = path + ":" + dataset;
  const Hdf5Handle type = own(H5Dget_type(data.get()), H5Tclose, ErrorKind::BadInput, where);
  HEARTH_CHECK(H5Tget_class(type.get()) == H5T_INTEGER, BadInput,
               "{}: holds no integers; token ids are expected", where);
  const Hdf5Handle space = own(H5Dget_space(data.get()), H5Sclose, ErrorKind::BadInput, where);
  const int dims = H5Sget_simple_extent_ndims(space.get());
  HEARTH_CHECK(dims == 1 || dims == 2, BadInput, "{}: has {} dimensions, expected 1 or 2 ([N, L])", where,
               dims);
  hsize_t size[2] = {0, 1};
  H5Sget_simple_extent_dims(space.get(), size, nullptr);
  HEARTH_CHECK(size[0] <= hsize_t{1} << 48 && size[1] <= hsize_t{1} << 31, BadInput,
               "{}: shape [{}, {}] is absurd", where, size[0], size[1]);
  check_storage(data.get(), where);
  flat_ = dims == 1;
  num_rows_ = static_cast<int64_t>(size[0]);
  row_length_ = static_cast<int64_t>(size[1]);
  hdf5_ = std::make_unique<Hdf5>(Hdf5{std::move(file), std::move(data)});
}

TokenFile::~TokenFile() = default;

std::vector<int64_t> TokenFile::read_rows(int64_t first, int64_t count) const {
  HEARTH_ASSERT(first >= 0 && count > 0 && first + count <= num_rows_);
  std::vector<int64_t> values(static_cast<size_t>(count * row_length_));
  const hsize_t start[2] = {static_cast<hsize_t>(first), 0};
  const hsize_t size[2] = {static_cast<hsize_t>(count), static_cast<hsize_t>(row_length_)};
  const auto memory =
      own(H5Screate_simple(flat_ ? 1 : 2, size, nullptr), H5Sclose, ErrorKind::Internal, "H5Screate_simple");
  const auto space = own(H5Dget_space(hdf5_->dataset.get()), H5Sclose, ErrorKind::BadInput, path_);
  if (H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start, nullptr, size, nullptr) < 0 ||
      H5Dread(hdf5_->dataset.get(), H5T_NATIVE_INT64, memory.get(), space.get(), H5P_DEFAULT, values.data()) <
          0) {
    fail_hdf5(ErrorKind::BadInput, fmt::format("{}:{}: cannot read rows {} to {}; the file is damaged", path_,
                                               dataset_, first, first + count - 1));
  }
  return values;
}

}  // namespace hearth
