#include <algorithm>
#include <map>

#include "base/error.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/interchange/torch_pickle.h"
#include "trainer/interchange/zip_members.h"

namespace hearth {
namespace {

constexpr int64_t kMaxPickleBytes = int64_t{32} << 20;

class TorchFile final : public TensorSource {
 public:
  TorchFile(FileSystem& fs, const std::string& path) : path_(path), file_(fs.open(path)) {
    const auto members = read_zip_members(*file_, path);
    const auto pickle = std::find_if(members.begin(), members.end(), [](const auto& member) {
      return member.first.ends_with("/data.pkl") &&
             std::count(member.first.begin(), member.first.end(), '/') == 1;
    });
    HEARTH_CHECK(pickle != members.end(), BadInput, "{}: is not a PyTorch file: the archive has no data.pkl",
                 path);
    const std::string prefix = pickle->first.substr(0, pickle->first.size() - std::string("data.pkl").size());
    if (const auto order = members.find(prefix + "byteorder"); order != members.end())
      HEARTH_CHECK(text(order->second, 16) == "little", BadInput, "{}: is not little-endian", path);
    for (const PickledTensor& tensor : read_pickled_tensors(text(pickle->second, kMaxPickleBytes), path))
      add(tensor, members, prefix + "data/" + tensor.storage);
  }
  const std::vector<TensorInfo>& tensors() const override { return infos_; }
  bool contains(const std::string& name) const override { return places_.contains(name); }
  const TensorInfo& info(const std::string& name) const override { return infos_[place(name).index]; }
  void read_elements(const std::string& name, int64_t begin, int64_t end, DType dtype,
                     void* out) const override {
    const Place& at = place(name);
    const TensorInfo& tensor = infos_[at.index];
    HEARTH_REQUIRE(0 <= begin && begin <= end && end <= tensor.numel(), "{}: elements [{}, {}) of {}", name,
                   begin, end, tensor.numel());
    read_converted(*file_, at.offset, tensor.dtype, begin, end, dtype, out);
  }
  std::string describe() const override { return path_ + " (PyTorch)"; }

 private:
  struct Place {
    int64_t offset;
    size_t index;
  };
  std::string text(const ZipMember& member, int64_t limit) const {
    HEARTH_CHECK(member.bytes <= limit, BadInput, "{}: a member of {} bytes, expected at most {}", path_,
                 member.bytes, limit);
    std::string out(static_cast<size_t>(member.bytes), '\0');
    file_->read_at(member.offset, std::as_writable_bytes(std::span(out)));
    return out;
  }
  void add(const PickledTensor& tensor, const std::map<std::string, ZipMember>& members,
           const std::string& storage) {
    const auto found = members.find(storage);
    const int64_t width = size_bytes(tensor.info.dtype);
    HEARTH_CHECK(found != members.end() && found->second.bytes == checked_mul(tensor.storage_numel, width),
                 BadInput, "{}: the storage {} of {} is missing or has a wrong size", path_, storage,
                 tensor.info.name);
    const Place place{found->second.offset + tensor.first * width, infos_.size()};
    HEARTH_CHECK(places_.emplace(tensor.info.name, place).second, BadInput, "{}: {} stands twice", path_,
                 tensor.info.name);
    infos_.push_back(tensor.info);
  }
  const Place& place(const std::string& name) const {
    const auto found = places_.find(name);
    HEARTH_CHECK(found != places_.end(), BadInput, "{}: has no tensor {}", describe(), name);
    return found->second;
  }
  std::string path_;
  std::unique_ptr<ReadableFile> file_;
  std::map<std::string, Place> places_;
  std::vector<TensorInfo> infos_;
};

}  // namespace

std::unique_ptr<TensorSource> open_torch_file(FileSystem& fs, const std::string& path) {
  return std::make_unique<TorchFile>(fs, path);
}

}  // namespace hearth
