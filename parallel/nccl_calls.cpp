#include "parallel/nccl_calls.h"

#include <fmt/core.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>

#include "base/error.h"

namespace hearth {
namespace {

std::string to_hex(const ncclUniqueId& id) {
  std::string text;
  for (const char c : id.internal) text += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return text;
}

ncclUniqueId from_hex(std::string_view text) {
  ncclUniqueId id;
  HEARTH_ASSERT(text.size() == 2 * sizeof(id.internal));
  for (size_t i = 0; i < sizeof(id.internal); ++i)
    id.internal[i] = static_cast<char>(std::stoi(std::string(text.substr(2 * i, 2)), nullptr, 16));
  return id;
}

struct Aborts {
  std::mutex mutex;
  std::condition_variable ended;
  int running = 0;
};
// Never destroyed: an abort that hangs outlives everything.
Aborts& aborts() {
  static auto& all = *new Aborts;
  return all;
}

void wait_for_aborts() {
  std::unique_lock lock(aborts().mutex);
  aborts().ended.wait_for(lock, std::chrono::seconds(2), [] { return aborts().running == 0; });
}

}  // namespace

void abort_in_background(ncclComm_t comm) {
  // Registered after NCCL and CUDA were loaded and used, so it runs before their own ends.
  [[maybe_unused]] static const int registered = std::atexit(wait_for_aborts);
  {
    const std::lock_guard lock(aborts().mutex);
    ++aborts().running;
  }
  std::thread([comm] {
    ncclCommAbort(comm);
    const std::lock_guard lock(aborts().mutex);
    --aborts().running;
    aborts().ended.notify_all();
  }).detach();
}

void check_nccl(ncclResult_t code, std::string_view call, ncclComm_t comm) {
  HEARTH_CHECK(code == ncclSuccess, Peer, "{} failed: {}: {}", call, ncclGetErrorString(code),
               ncclGetLastError(comm));
}

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::F64:
      return ncclFloat64;
    case DType::F32:
      return ncclFloat32;
    case DType::F16:
      return ncclFloat16;
    case DType::BF16:
      return ncclBfloat16;
    case DType::I64:
      return ncclInt64;
    case DType::I32:
      return ncclInt32;
    default:
      fail(ErrorKind::Usage, "cannot reduce elements of type {}", config_name(dtype));
  }
}

ncclUniqueId share_nccl_id(ControlPlane& control, const std::vector<int>& ranks, std::string_view group) {
  ncclUniqueId id{};
  if (ranks[0] == control.rank() && ranks.size() > 1)
    check_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId", nullptr);
  const auto ids = control.all_gather(to_hex(id), fmt::format("nccl.unique_id.{}", group));
  return from_hex(ids[static_cast<size_t>(ranks[0])]);
}

}  // namespace hearth
