// Scratch objects that calls borrow and give back, so that concurrent calls need no lock while they work and
// warm buffers (the word cache) serve the next call. At most one object per concurrent call ever exists.
// Thread-safe.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace hearth {

template <class T>
class ScratchPool {
 public:
  class Lease {
   public:
    Lease(ScratchPool& pool, std::unique_ptr<T> object) : pool_(pool), object_(std::move(object)) {}
    ~Lease() {
      const std::lock_guard lock(pool_.mutex_);
      pool_.free_.push_back(std::move(object_));  // capacity was made by borrow, so this does not throw
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    T& operator*() const { return *object_; }
    T* operator->() const { return object_.get(); }

   private:
    ScratchPool& pool_;
    std::unique_ptr<T> object_;
  };

  Lease borrow() {
    const std::lock_guard lock(mutex_);
    std::unique_ptr<T> object;
    if (free_.empty()) {
      object = std::make_unique<T>();
      free_.reserve(++made_);
    } else {
      object = std::move(free_.back());
      free_.pop_back();
    }
    return Lease(*this, std::move(object));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<T>> free_;
  size_t made_ = 0;
};

}  // namespace hearth
