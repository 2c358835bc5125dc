#include "data/open_files.h"

namespace hearth {

std::shared_ptr<const ReadableFile> OpenFiles::get(const std::string& path) {
  const std::lock_guard lock(mutex_);
  if (const auto found = by_path_.find(path); found != by_path_.end()) {
    recent_.splice(recent_.begin(), recent_, found->second);
    return found->second->second;
  }
  recent_.emplace_front(path, fs_.open(path));
  by_path_[path] = recent_.begin();
  if (recent_.size() > capacity_) {
    by_path_.erase(recent_.back().first);
    recent_.pop_back();
  }
  return recent_.front().second;
}

}  // namespace hearth
