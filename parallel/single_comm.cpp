#include "parallel/single_comm.h"

#include <cstring>

#include "base/error.h"

namespace hearth {
namespace {

class DoneWork final : public Work {
 public:
  void wait() override {}
  bool poll() override { return true; }
};

class SingleComm final : public Comm {
 public:
  SingleComm(std::string group, CopyFunction copy) : group_(std::move(group)), copy_(std::move(copy)) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }
  std::string_view backend() const override { return "single"; }
  const std::string& group() const override { return group_; }
  void set_compute_stream(StreamHandle stream) override { stream_ = stream; }

  WorkPtr all_reduce(void*, int64_t count, DType, ReduceOp, std::string_view site) override {
    check_count(count, site);
    return std::make_unique<DoneWork>();
  }
  WorkPtr reduce_scatter(const void* send, void* recv, int64_t count, DType dtype,
                         std::string_view site) override {
    return copy(send, recv, count, dtype, site);
  }
  WorkPtr all_gather(const void* send, void* recv, int64_t count, DType dtype,
                     std::string_view site) override {
    return copy(send, recv, count, dtype, site);
  }
  WorkPtr broadcast(void*, int64_t count, DType, int root, std::string_view site) override {
    check_count(count, site);
    HEARTH_REQUIRE(root == 0, "broadcast '{}': root {} is not in group {} of 1", site, root, group_);
    return std::make_unique<DoneWork>();
  }
  WorkPtr all_to_all(const void* send, void* recv, int64_t count, DType dtype,
                     std::string_view site) override {
    return copy(send, recv, count, dtype, site);
  }
  WorkPtr send(const void*, int64_t, DType, int peer, std::string_view site) override {
    no_peer("send", peer, site);
  }
  WorkPtr recv(void*, int64_t, DType, int peer, std::string_view site) override {
    no_peer("recv", peer, site);
  }
  void barrier(std::string_view) override {}

 private:
  static void check_count(int64_t count, std::string_view site) {
    HEARTH_REQUIRE(count >= 0, "'{}': count {} is negative", site, count);
  }
  WorkPtr copy(const void* from, void* to, int64_t count, DType dtype, std::string_view site) {
    check_count(count, site);
    if (from != to && count > 0) copy_(to, from, count * size_bytes(dtype), stream_);
    return std::make_unique<DoneWork>();
  }
  [[noreturn]] void no_peer(std::string_view op, int peer, std::string_view site) const {
    fail(ErrorKind::Usage, "{} '{}': group {} of one rank has no peer {}", op, site, group_, peer);
  }
  std::string group_;
  CopyFunction copy_;
  StreamHandle stream_ = nullptr;
};

}  // namespace

std::unique_ptr<Comm> make_single_comm(std::string group) {
  return make_single_comm(std::move(group), [](void* to, const void* from, int64_t size_bytes, StreamHandle) {
    std::memcpy(to, from, static_cast<size_t>(size_bytes));
  });
}

std::unique_ptr<Comm> make_single_comm(std::string group, CopyFunction copy) {
  return std::make_unique<SingleComm>(std::move(group), std::move(copy));
}

}  // namespace hearth
