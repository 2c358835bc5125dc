#include "data/shard_layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "data/hdf5_array.h"
#include "data/hdf5_handle.h"

namespace hearth {
namespace {

constexpr int64_t kMaxAttributeBytes = 4096;

struct LinkList {
  std::vector<std::string> names;
  std::string problem;
};

herr_t collect_link(hid_t, const char* name, const H5L_info_t* info, void* out) {
  auto& links = *static_cast<LinkList*>(out);
  if (info->type != H5L_TYPE_HARD) links.problem = fmt::format("'{}' is a soft or external link", name);
  links.names.emplace_back(name);
  return links.names.size() > 16 || !links.problem.empty() ? 1 : 0;  // 1 ends the walk
}

herr_t collect_attribute(hid_t, const char* name, const H5A_info_t*, void* out) {
  auto& names = *static_cast<std::vector<std::string>*>(out);
  names.emplace_back(name);
  return names.size() > 16 ? 1 : 0;
}

// Names directly under `group`; hard links only.
std::vector<std::string> list_group(hid_t file, const char* group, const std::string& path) {
  const auto id = own(H5Gopen2(file, group, H5P_DEFAULT), H5Gclose, ErrorKind::BadInput,
                      fmt::format("{}: cannot open group {}", path, group));
  LinkList links;
  if (H5Literate(id.get(), H5_INDEX_NAME, H5_ITER_INC, nullptr, collect_link, &links) < 0) {
    fail_hdf5(ErrorKind::BadInput, fmt::format("{}: cannot list group {}", path, group));
  }
  HEARTH_CHECK(links.problem.empty(), BadInput, "{}: {}; a shard holds plain datasets only", path,
               links.problem);
  return links.names;
}

void check_names(const std::vector<std::string>& found, const std::vector<std::string_view>& required,
                 const std::vector<std::string_view>& optional, const std::string& where) {
  for (const auto name : required) {
    HEARTH_CHECK(std::find(found.begin(), found.end(), name) != found.end(), BadInput,
                 "{}: '{}' is missing; not a token shard (convert it with `hearth data prepare FILE.h5`)",
                 where, name);
  }
  for (const auto& name : found) {
    const bool known = std::find(required.begin(), required.end(), name) != required.end() ||
                       std::find(optional.begin(), optional.end(), name) != optional.end();
    HEARTH_CHECK(known, BadInput, "{}: unexpected object '{}'; a shard holds nothing beyond its format",
                 where, name);
  }
}

class LayoutReader {
 public:
  LayoutReader(const std::string& path, int64_t size_bytes)
      : path_(path), size_bytes_(size_bytes), file_(open_hdf5_read_only(path)) {}

  ShardLayout read() {
    const auto names = list_group(file_.get(), "/", path_);
    check_names(names, {"tokens", "documents", "block_digest"}, {"loss_mask", "segments"}, path_);
    check_names(list_group(file_.get(), "/documents", path_), {"offset"}, {}, path_ + ":/documents");
    ShardLayout layout;
    layout.attributes = read_attributes();
    const PlainArray tokens = array("/tokens", {H5T_STD_U16LE, H5T_STD_U32LE}, "uint16 or uint32");
    layout.tokens = tokens.extent;
    layout.token_bytes = tokens.element_bytes;
    layout.documents = array("/documents/offset", {H5T_STD_U64LE}, "uint64").extent;
    layout.block_digest = array("/block_digest", {H5T_STD_U64LE}, "uint64").extent;
    const auto has = [&](std::string_view name) {
      return std::find(names.begin(), names.end(), name) != names.end();
    };
    if (has("loss_mask")) layout.loss_mask = array("/loss_mask", {H5T_STD_U8LE}, "uint8").extent;
    if (has("segments")) layout.segments = array("/segments", {H5T_STD_U64LE}, "uint64").extent;
    const int64_t blocks = (layout.tokens.size_bytes + kTokenBlockBytes - 1) / kTokenBlockBytes;
    HEARTH_CHECK(layout.block_digest.size_bytes == blocks * 8, BadInput,
                 "{}: /block_digest has {} entries, expected {} (one for 64 KiB of tokens)", path_,
                 layout.block_digest.size_bytes / 8, blocks);
    layout.block_digests.resize(static_cast<size_t>(blocks));
    const auto id = own(H5Dopen2(file_.get(), "/block_digest", H5P_DEFAULT), H5Dclose, ErrorKind::BadInput,
                        fmt::format("{}: cannot open dataset /block_digest", path_));
    if (H5Dread(id.get(), H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, layout.block_digests.data()) <
        0) {
      fail_hdf5(ErrorKind::BadInput, fmt::format("{}: cannot read /block_digest", path_));
    }
    return layout;
  }

 private:
  PlainArray array(const char* name, const std::vector<hid_t>& types, const char* type_names) const {
    return find_plain_array(file_.get(), name, {types, type_names, /*dims=*/1, kMaxShardBytes}, size_bytes_,
                            path_);
  }

  Hdf5Handle attribute(const char* name, H5T_class_t wanted) const {
    auto id = own(H5Aopen(file_.get(), name, H5P_DEFAULT), H5Aclose, ErrorKind::BadInput,
                  fmt::format("{}: attribute {} is missing", path_, name));
    const auto type = own(H5Aget_type(id.get()), H5Tclose, ErrorKind::BadInput, path_);
    const auto space = own(H5Aget_space(id.get()), H5Sclose, ErrorKind::BadInput, path_);
    HEARTH_CHECK(H5Tget_class(type.get()) == wanted && H5Tis_variable_str(type.get()) <= 0 &&
                     H5Sget_simple_extent_npoints(space.get()) == 1 &&
                     H5Tget_size(type.get()) <= static_cast<size_t>(kMaxAttributeBytes),
                 BadInput, "{}: attribute {} is not a scalar of fixed size and the expected type", path_,
                 name);
    return id;
  }
  int64_t integer_attribute(const char* name) const {
    const auto id = attribute(name, H5T_INTEGER);
    int64_t value = 0;
    if (H5Aread(id.get(), H5T_NATIVE_INT64, &value) < 0)
      fail_hdf5(ErrorKind::BadInput, path_ + ": attribute " + name);
    return value;
  }
  std::string text_attribute(const char* name) const {
    const auto id = attribute(name, H5T_STRING);
    const auto type = own(H5Aget_type(id.get()), H5Tclose, ErrorKind::BadInput, path_);
    std::string value(H5Tget_size(type.get()), '\0');
    if (H5Aread(id.get(), type.get(), value.data()) < 0)
      fail_hdf5(ErrorKind::BadInput, path_ + ": attribute " + name);
    return value.substr(0, value.find('\0'));
  }
  ShardAttributes read_attributes() const {
    std::vector<std::string> names;
    const auto root = own(H5Gopen2(file_.get(), "/", H5P_DEFAULT), H5Gclose, ErrorKind::BadInput, path_);
    if (H5Aiterate2(root.get(), H5_INDEX_NAME, H5_ITER_INC, nullptr, collect_attribute, &names) < 0) {
      fail_hdf5(ErrorKind::BadInput, path_ + ": cannot list attributes");
    }
    check_names(names, {"format_version", "tokenizer_digest", "vocab_size", "eos_id", "source_digest"}, {},
                path_ + ": attributes");
    return {integer_attribute("format_version"), text_attribute("tokenizer_digest"),
            integer_attribute("vocab_size"), integer_attribute("eos_id"), text_attribute("source_digest")};
  }

  const std::string& path_;
  int64_t size_bytes_;
  Hdf5Handle file_;
};

}  // namespace

ShardLayout read_shard_layout(const std::string& path, int64_t size_bytes) {
  return LayoutReader(path, size_bytes).read();
}

}  // namespace hearth
