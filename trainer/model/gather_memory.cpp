#include "trainer/model/gather_memory.h"

#include <map>
#include <utility>

#include "trainer/device.h"

namespace hearth {

struct GatherMemory::Blocks {
  std::multimap<int64_t, std::shared_ptr<void>> free;  // by bytes
};

// A block in use, which goes back when its tensor lets go of it.
class GatherMemory::Loan {
 public:
  Loan(std::shared_ptr<Blocks> home, int64_t size_bytes, std::shared_ptr<void> block)
      : home_(std::move(home)), size_bytes_(size_bytes), block_(std::move(block)) {}
  ~Loan() { home_->free.emplace(size_bytes_, std::move(block_)); }
  Loan(const Loan&) = delete;
  Loan& operator=(const Loan&) = delete;
  void* data() const { return block_.get(); }

 private:
  std::shared_ptr<Blocks> home_;
  int64_t size_bytes_;
  std::shared_ptr<void> block_;
};

GatherMemory::GatherMemory(Comm* ranks, at::Device device) : ranks_(ranks), device_(device) {}

at::DataPtr GatherMemory::allocate(int64_t size_bytes) {
  std::shared_ptr<void> block;
  if (blocks_ != nullptr) {
    if (const auto kept = blocks_->free.find(size_bytes); kept != blocks_->free.end()) {
      block = std::move(kept->second);
      blocks_->free.erase(kept);
    }
  }
  if (block == nullptr && ranks_ != nullptr && size_bytes > 0) {
    release_cached_memory(device_);  // the group's memory comes from what the allocator has not taken
    block = ranks_->allocate(size_bytes);
    if (block != nullptr) size_bytes_ += size_bytes;
  }
  if (block == nullptr) {
    if (size_bytes > 0) ranks_ = nullptr;
    return c10::GetAllocator(device_.type())->allocate(static_cast<size_t>(size_bytes));
  }
  if (blocks_ == nullptr) blocks_ = std::make_shared<Blocks>();
  auto* loan = new Loan(blocks_, size_bytes, std::move(block));
  return {loan->data(), loan, [](void* context) { delete static_cast<Loan*>(context); }, device_};
}

}  // namespace hearth
