// NCCL backend on 1, 2 and 4 ranks, which may share one device. Values are small integers, so every order of
// summation gives the same bits. Without a device the program says so and counts as skipped.
#include <cuda_runtime_api.h>

#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <thread>

#include "parallel/binding.h"
#include "parallel/cuda_handles.h"
#include "parallel/device_info.h"
#include "parallel/self_test.h"
#include "tests/parallel/mpi_fixture.h"

using namespace hearth;
namespace bdata = boost::unit_test::data;
namespace utf = boost::unit_test;

namespace {

int device_count() {
  static const int count = static_cast<int>(cuda_devices().devices.size());
  return count;
}

boost::test_tools::assertion_result has_device(utf::test_unit_id) {
  if (device_count() > 0) return true;
  std::cout << "skipped: no CUDA device\n";
  return false;
}

int my_device() {
  static const int device = [] {
    const auto& control = *test::job().control;
    if (const auto id = nccl_host_id(control, device_count())) ::setenv("NCCL_HOSTID", id->c_str(), 1);
    return *device_of(control.local_rank(), device_count());
  }();
  return device;
}

std::unique_ptr<Comm> make_world(double timeout_s = 60) {
  return make_comm(
      test::job(),
      {.group = "world", .ranks = test::all_ranks(), .cuda_device = my_device(), .timeout_s = timeout_s});
}

Comm& comm() {
  static Comm* instance = make_world().release();  // lives as long as the process, like the job
  return *instance;
}

// Elements of any type on the device; values are the integers of `host`.
class DeviceData {
 public:
  DeviceData(const std::vector<double>& host, DType dtype) : dtype_(dtype), count_(host.size()) {
    memory_ = allocate_cuda(std::max<int64_t>(bytes(), 1));
    const auto encoded = encode(host);
    check_cuda(cudaMemcpy(memory_.get(), encoded.data(), encoded.size(), cudaMemcpyDefault), "cudaMemcpy");
  }
  void* at(int64_t element) { return static_cast<char*>(memory_.get()) + element * size_bytes(dtype_); }
  std::vector<double> read() const {
    std::vector<char> raw(static_cast<size_t>(bytes()));
    check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    check_cuda(cudaMemcpy(raw.data(), memory_.get(), raw.size(), cudaMemcpyDefault), "cudaMemcpy");
    std::vector<double> out(count_);
    if (is_integer()) {
      for (size_t i = 0; i < count_; ++i) {
        int64_t value = 0;
        std::memcpy(&value, raw.data() + static_cast<int64_t>(i) * size_bytes(dtype_),
                    static_cast<size_t>(size_bytes(dtype_)));
        out[i] = static_cast<double>(value);
      }
    } else {
      convert(dtype_, raw.data(), DType::F64, out.data(), static_cast<int64_t>(count_));
    }
    return out;
  }

 private:
  bool is_integer() const {
    return dtype_ == DType::I64 || dtype_ == DType::I32 || dtype_ == DType::I16 || dtype_ == DType::U8;
  }
  int64_t bytes() const { return static_cast<int64_t>(count_) * size_bytes(dtype_); }
  std::vector<char> encode(const std::vector<double>& host) const {
    std::vector<char> raw(static_cast<size_t>(bytes()));
    if (!is_integer()) {
      convert(DType::F64, host.data(), dtype_, raw.data(), static_cast<int64_t>(count_));
      return raw;
    }
    for (size_t i = 0; i < count_; ++i) {
      const auto value = static_cast<int64_t>(host[i]);  // little-endian, non-negative
      std::memcpy(raw.data() + static_cast<int64_t>(i) * size_bytes(dtype_), &value,
                  static_cast<size_t>(size_bytes(dtype_)));
    }
    return raw;
  }
  DType dtype_;
  size_t count_;
  CudaMemory memory_;
};

// At most 30, so the sum over 8 ranks is exact in bf16 (integers up to 256).
double value_of(int rank, int64_t i) {
  return static_cast<double>((i * 7 + rank * 13) % 31);
}

std::vector<double> data_of(int rank, int64_t count) {
  std::vector<double> out(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) out[static_cast<size_t>(i)] = value_of(rank, i);
  return out;
}

std::vector<double> reduced(int64_t count, ReduceOp op) {
  auto out = data_of(0, count);
  for (int r = 1; r < comm().size(); ++r)
    for (int64_t i = 0; i < count; ++i) {
      double& x = out[static_cast<size_t>(i)];
      x = op == ReduceOp::Sum ? x + value_of(r, i) : std::max(x, value_of(r, i));
    }
  return out;
}

std::vector<double> slice(const std::vector<double>& all, int64_t begin, int64_t count) {
  return {all.begin() + begin, all.begin() + begin + count};
}

constexpr DType kReducible[] = {DType::F64, DType::F32, DType::F16, DType::BF16, DType::I64, DType::I32};
constexpr int64_t kCounts[] = {0, 1, 7, 1000, 1000003};

}  // namespace

BOOST_TEST_DECORATOR(*utf::precondition(has_device))
BOOST_DATA_TEST_CASE(nccl_all_reduce, bdata::make(kCounts), count) {
  for (const DType dtype : kReducible)
    for (const ReduceOp op : {ReduceOp::Sum, ReduceOp::Max}) BOOST_TEST_CONTEXT(config_name(dtype)) {
        DeviceData data(data_of(comm().rank(), count), dtype);
        comm().all_reduce(data.at(0), count, dtype, op, "test.all_reduce")->wait();
        BOOST_TEST((data.read() == reduced(count, op)));
      }
}

BOOST_TEST_DECORATOR(*utf::precondition(has_device))
BOOST_DATA_TEST_CASE(nccl_reduce_scatter_and_all_gather, bdata::make(kCounts), count) {
  const int size = comm().size(), rank = comm().rank();
  const auto all = reduced(count * size, ReduceOp::Sum);
  for (const DType dtype : kReducible) BOOST_TEST_CONTEXT(config_name(dtype)) {
      DeviceData data(data_of(rank, count * size), dtype),
          chunk(std::vector<double>(static_cast<size_t>(count)), dtype);
      comm().reduce_scatter(data.at(0), chunk.at(0), count, dtype, "test.reduce_scatter")->wait();
      BOOST_TEST((chunk.read() == slice(all, rank * count, count)));
      comm().reduce_scatter(data.at(0), data.at(rank * count), count, dtype, "test.in_place")->wait();
      BOOST_TEST((slice(data.read(), rank * count, count) == slice(all, rank * count, count)));
      comm().all_gather(data.at(rank * count), data.at(0), count, dtype, "test.in_place")->wait();
      BOOST_TEST((data.read() == all));
      DeviceData gathered(std::vector<double>(static_cast<size_t>(count * size)), dtype);
      comm().all_gather(chunk.at(0), gathered.at(0), count, dtype, "test.all_gather")->wait();
      BOOST_TEST((gathered.read() == all));
    }
}

BOOST_TEST_DECORATOR(*utf::precondition(has_device))
BOOST_DATA_TEST_CASE(nccl_moves, bdata::make(kCounts), count) {
  const int size = comm().size(), rank = comm().rank();
  for (const DType dtype : {DType::BF16, DType::I16, DType::U8}) {
    std::vector<double> want;
    for (int r = 0; r < size; ++r)
      for (const double x : slice(data_of(r, count * size), rank * count, count)) want.push_back(x);
    DeviceData from(data_of(rank, count * size), dtype), to(std::vector<double>(want.size()), dtype);
    comm().all_to_all(from.at(0), to.at(0), count, dtype, "test.all_to_all")->wait();
    BOOST_TEST((to.read() == want));
    for (int root = 0; root < size; ++root) {
      DeviceData data(data_of(rank, count), dtype);
      comm().broadcast(data.at(0), count, dtype, root, "test.broadcast")->wait();
      BOOST_TEST((data.read() == data_of(root, count)));
    }
    if (size == 1) continue;
    DeviceData data(data_of(rank, count), dtype);
    if (rank == 0) comm().send(data.at(0), count, dtype, size - 1, "test.send")->wait();
    if (rank == size - 1) {
      comm().recv(data.at(0), count, dtype, 0, "test.recv")->wait();
      BOOST_TEST((data.read() == data_of(0, count)));
    }
  }
}

// The collective must see what the compute stream wrote before it, and the compute stream what the collective
// wrote.
BOOST_AUTO_TEST_CASE(nccl_is_ordered_against_the_compute_stream, *utf::precondition(has_device)) {
  constexpr int64_t kCount = 16 << 20;
  const auto mine = make_world();
  const CudaStream compute = make_high_priority_stream();
  mine->set_compute_stream(compute.get());
  DeviceData data(std::vector<double>(static_cast<size_t>(kCount)), DType::I32);
  std::vector<int32_t> out(static_cast<size_t>(kCount));
  for (int round = 0; round < 5; ++round) {
    // Bytes 0x01: each element is 0x01010101. The first writes keep the stream busy while the collective is
    // issued.
    for (int i = 0; i < 8; ++i)
      check_cuda(cudaMemsetAsync(data.at(0), i, kCount * sizeof(int32_t), compute.get()), "cudaMemsetAsync");
    check_cuda(cudaMemsetAsync(data.at(0), 1, kCount * sizeof(int32_t), compute.get()), "cudaMemsetAsync");
    mine->all_reduce(data.at(0), kCount, DType::I32, ReduceOp::Sum, "test.order")->wait();
    check_cuda(
        cudaMemcpyAsync(out.data(), data.at(0), kCount * sizeof(int32_t), cudaMemcpyDefault, compute.get()),
        "cudaMemcpyAsync");
    check_cuda(cudaStreamSynchronize(compute.get()), "cudaStreamSynchronize");
    const int32_t want = 0x01010101 * mine->size();
    BOOST_TEST(std::count(out.begin(), out.end(), want) == kCount);
  }
}

// Blocks of a window, in place and not, again and again: what one call writes must not meet what an earlier
// one still reads. Ranks that share a device have no such memory.
BOOST_AUTO_TEST_CASE(nccl_gathers_between_memory_of_its_own, *utf::precondition(has_device)) {
  constexpr int64_t kCount = 1 << 20;  // int32 of one rank
  const auto mine = make_world();
  const CudaStream compute = make_high_priority_stream();  // outlives the memory, which waits for it
  mine->set_compute_stream(compute.get());
  const int rank = mine->rank(), size = mine->size();
  constexpr auto kBytes = static_cast<int64_t>(kCount * sizeof(int32_t));
  const auto parts = mine->allocate(2 * kBytes), whole = mine->allocate(size * kBytes);
  std::cout << "rank " << rank << ": " << (whole ? "memory of its own\n" : "none of its own\n");
  BOOST_TEST((parts == nullptr) == (whole == nullptr));
  const bool alone_on_device = size > 1 && device_count() >= size;
  BOOST_TEST((whole != nullptr) == alone_on_device);
  if (whole == nullptr) return;
  auto* out = static_cast<int32_t*>(whole.get());
  std::vector<int32_t> got(static_cast<size_t>(size * kCount));
  for (int round = 0; round < 20; ++round) {
    const bool in_place = round % 2 == 0;
    auto* in = in_place ? out + rank * kCount : static_cast<int32_t*>(parts.get()) + kCount;
    check_cuda(cudaMemsetAsync(in, 1 + round + rank, kBytes, compute.get()), "cudaMemsetAsync");
    mine->all_gather(in, out, kCount, DType::I32, "test.window")->wait();
    check_cuda(
        cudaMemcpyAsync(got.data(), out, got.size() * sizeof(int32_t), cudaMemcpyDefault, compute.get()),
        "cudaMemcpyAsync");
    check_cuda(cudaStreamSynchronize(compute.get()), "cudaStreamSynchronize");
    for (int from = 0; from < size; ++from) {
      const auto begin = got.begin() + from * kCount;
      BOOST_TEST(std::count(begin, begin + kCount, 0x01010101 * (1 + round + from)) == kCount);
    }
    // Part of a window to plain memory, and back: any mixture is allowed.
    DeviceData plain(std::vector<double>(static_cast<size_t>(size * kCount)), DType::I32);
    mine->all_gather(in, plain.at(0), kCount, DType::I32, "test.mixed")->wait();
    mine->all_reduce(out, kCount, DType::I32, ReduceOp::Max, "test.window")->wait();
    mine->barrier("test.round");
  }
}

BOOST_AUTO_TEST_CASE(nccl_self_check_and_barrier, *utf::precondition(has_device)) {
  const auto check = check_collective(test::job(), my_device());
  BOOST_TEST(check.backend == (comm().size() == 1 ? "single" : "nccl"));
  comm().barrier("test.barrier");
}

// Rank 0 alone enters; its watchdog must free it within the deadline (2 s; 20 s with the abort) and name the
// call.
BOOST_AUTO_TEST_CASE(nccl_deadline_names_the_call, *utf::precondition(has_device)) {
  if (comm().size() == 1) return;
  auto alone = make_world(2);
  alone->barrier("test.links_are_up");
  if (alone->rank() == 0) {
    DeviceData data(data_of(0, 1000), DType::F32);
    const auto start = std::chrono::steady_clock::now();
    const auto expected = [](const Error& e) {
      return e.kind() == ErrorKind::Timeout &&
             e.message().find("all_reduce 'grad.bucket3'") != std::string::npos;
    };
    const auto poll_to_the_end = [&] {  // the call itself throws where NCCL waits for peers inside it
      const auto work = alone->all_reduce(data.at(0), 1000, DType::F32, ReduceOp::Sum, "grad.bucket3");
      while (!work->poll()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
      work->wait();
    };
    BOOST_CHECK_EXCEPTION(poll_to_the_end(), Error, expected);
    BOOST_TEST(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() <= 20.0);
    BOOST_TEST(test::job().recorder->dump().find("all_reduce grad.bucket3 4000 fp32 failed") !=
               std::string::npos);
  }
  test::job().control->barrier("test.deadline_over");
}
