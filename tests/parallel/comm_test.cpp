// Every collective x element type x awkward sizes against an expectation computed here, bit for bit:
// reductions must be the sum in rank order. Runs on 1, 2, 4 and 8 ranks.
#include "parallel/comm.h"

#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <limits>

#include "tests/parallel/mpi_fixture.h"

using namespace hearth;
namespace bdata = boost::unit_test::data;

namespace {

constexpr DType kReducible[] = {DType::F64, DType::F32, DType::F16, DType::BF16, DType::I64, DType::I32};
constexpr DType kCopied[] = {DType::F64, DType::F32, DType::BF16, DType::I64, DType::I16, DType::U8};
// Empty, one, around the number of ranks, around the limit of the direct all-reduce (2048 fp32), several
// segments (131072 fp32 each) with a remainder.
constexpr int64_t kCounts[] = {0, 1, 3, 7, 8, 9, 2047, 2048, 2049, 5000, 131073, 1000003};

using Bytes = std::vector<std::byte>;

double value_of(int rank, int64_t i, uint64_t seed) {
  uint64_t x = (static_cast<uint64_t>(rank) + 1) * 0x9e3779b97f4a7c15ull + static_cast<uint64_t>(i) +
               seed * 0xff51afd7ed558ccdull;
  x ^= x >> 33, x *= 0xff51afd7ed558ccdull, x ^= x >> 29, x *= 0xc4ceb9fe1a85ec53ull, x ^= x >> 32;
  return static_cast<double>(static_cast<int64_t>(x >> 11)) * 0x1p-53 * 200 - 100;  // in [-100, 100)
}

void store(DType dtype, std::byte* at, double value) {
  switch (dtype) {
    case DType::F64:
      std::memcpy(at, &value, 8);
      return;
    case DType::F32: {
      const auto v = static_cast<float>(value);
      std::memcpy(at, &v, 4);
      return;
    }
    case DType::F16: {
      const uint16_t v = float_to_fp16(static_cast<float>(value));
      std::memcpy(at, &v, 2);
      return;
    }
    case DType::BF16: {
      const uint16_t v = float_to_bf16(static_cast<float>(value));
      std::memcpy(at, &v, 2);
      return;
    }
    default: {  // little-endian integers of any width
      const auto v = static_cast<int64_t>(value * 1000);
      std::memcpy(at, &v, static_cast<size_t>(size_bytes(dtype)));
    }
  }
}

Bytes data_of(int rank, int64_t count, DType dtype, uint64_t seed) {
  Bytes bytes(static_cast<size_t>(count * size_bytes(dtype)));
  for (int64_t i = 0; i < count; ++i)
    store(dtype, bytes.data() + i * size_bytes(dtype), value_of(rank, i, seed));
  return bytes;
}

template <class T>
T load(const Bytes& bytes, int64_t i) {
  T value;
  std::memcpy(&value, bytes.data() + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

template <class Stored, class Acc, class Load, class Store>
void reduce_as(const std::vector<Bytes>& all, Bytes& out, int64_t count, ReduceOp op, Load to_acc,
               Store from_acc) {
  for (int64_t i = 0; i < count; ++i) {
    Acc acc = to_acc(load<Stored>(all[0], i));
    for (size_t r = 1; r < all.size(); ++r) {
      const Acc x = to_acc(load<Stored>(all[r], i));
      acc = op == ReduceOp::Sum ? static_cast<Acc>(acc + x) : std::max(acc, x);
    }
    const Stored stored = from_acc(acc);
    std::memcpy(out.data() + i * static_cast<int64_t>(sizeof(Stored)), &stored, sizeof(Stored));
  }
}

// What rank order gives: the plain loop, independent of parallel/reduce.cpp.
Bytes expected(const std::vector<Bytes>& all, int64_t count, DType dtype, ReduceOp op) {
  Bytes out(all[0].size());
  const auto same = [](auto x) { return x; };
  switch (dtype) {
    case DType::F64:
      reduce_as<double, double>(all, out, count, op, same, same);
      break;
    case DType::F32:
      reduce_as<float, float>(all, out, count, op, same, same);
      break;
    case DType::I64:
      reduce_as<int64_t, int64_t>(all, out, count, op, same, same);
      break;
    case DType::I32:
      reduce_as<int32_t, int32_t>(all, out, count, op, same, same);
      break;
    case DType::F16:
      reduce_as<uint16_t, float>(all, out, count, op, fp16_to_float, float_to_fp16);
      break;
    default:
      reduce_as<uint16_t, float>(all, out, count, op, bf16_to_float, float_to_bf16);
  }
  return out;
}

std::vector<Bytes> data_of_all(int size, int64_t count, DType dtype, uint64_t seed) {
  std::vector<Bytes> all;
  for (int r = 0; r < size; ++r) all.push_back(data_of(r, count, dtype, seed));
  return all;
}

// Chunk `index` of `count` elements.
Bytes chunk(const Bytes& bytes, int index, int64_t count, DType dtype) {
  const auto begin = bytes.begin() + index * count * size_bytes(dtype);
  return {begin, begin + count * size_bytes(dtype)};
}

Comm& comm() {
  static const auto instance = test::world_comm();
  return *instance;
}

std::string label(DType dtype) {
  return std::string(config_name(dtype));
}

}  // namespace

BOOST_AUTO_TEST_CASE(world_is_what_the_launcher_started) {
  const char* promised = std::getenv("OMPI_COMM_WORLD_SIZE");
  BOOST_TEST(comm().size() == (promised == nullptr ? 1 : std::atoi(promised)));
  BOOST_TEST(comm().rank() == test::job().control->rank());
}

BOOST_DATA_TEST_CASE(all_reduce_is_the_sum_in_rank_order, bdata::make(kCounts), count) {
  for (const DType dtype : kReducible) {
    for (const ReduceOp op : {ReduceOp::Sum, ReduceOp::Max}) {
      BOOST_TEST_CONTEXT(label(dtype)) {
        const auto all = data_of_all(comm().size(), count, dtype, 1);
        Bytes mine = all[static_cast<size_t>(comm().rank())];
        comm().all_reduce(mine.data(), count, dtype, op, "test.all_reduce")->wait();
        BOOST_TEST((mine == expected(all, count, dtype, op)));
      }
    }
  }
}

BOOST_DATA_TEST_CASE(reduce_scatter_gives_each_rank_its_chunk, bdata::make(kCounts), total) {
  const int64_t count = total / comm().size();
  for (const DType dtype : kReducible) {
    BOOST_TEST_CONTEXT(label(dtype)) {
      const auto all = data_of_all(comm().size(), count * comm().size(), dtype, 2);
      const Bytes want =
          chunk(expected(all, count * comm().size(), dtype, ReduceOp::Sum), comm().rank(), count, dtype);
      const Bytes& send = all[static_cast<size_t>(comm().rank())];
      Bytes recv(want.size());
      comm().reduce_scatter(send.data(), recv.data(), count, dtype, "test.reduce_scatter")->wait();
      BOOST_TEST((recv == want));
      Bytes both = send;  // in place
      std::byte* own = both.data() + comm().rank() * count * size_bytes(dtype);
      comm().reduce_scatter(both.data(), own, count, dtype, "test.reduce_scatter_in_place")->wait();
      BOOST_TEST((chunk(both, comm().rank(), count, dtype) == want));
    }
  }
}

BOOST_DATA_TEST_CASE(all_gather_and_all_to_all_move_bytes, bdata::make(kCounts), total) {
  const int size = comm().size(), rank = comm().rank();
  const int64_t count = total / size;
  for (const DType dtype : kCopied) {
    BOOST_TEST_CONTEXT(label(dtype)) {
      const auto all = data_of_all(size, count * size, dtype, 3);
      Bytes gathered(all[0].size()), want_gathered, want_swapped;
      for (int r = 0; r < size; ++r) {
        const Bytes first = chunk(all[static_cast<size_t>(r)], 0, count, dtype);
        const Bytes to_me = chunk(all[static_cast<size_t>(r)], rank, count, dtype);
        want_gathered.insert(want_gathered.end(), first.begin(), first.end());
        want_swapped.insert(want_swapped.end(), to_me.begin(), to_me.end());
      }
      const Bytes& mine = all[static_cast<size_t>(rank)];
      comm().all_gather(mine.data(), gathered.data(), count, dtype, "test.all_gather")->wait();
      BOOST_TEST((gathered == want_gathered));
      Bytes in_place(gathered.size());
      std::byte* own = in_place.data() + rank * count * size_bytes(dtype);
      std::copy_n(mine.data(), count * size_bytes(dtype), own);
      comm().all_gather(own, in_place.data(), count, dtype, "test.all_gather_in_place")->wait();
      BOOST_TEST((in_place == want_gathered));
      Bytes swapped(mine.size());
      comm().all_to_all(mine.data(), swapped.data(), count, dtype, "test.all_to_all")->wait();
      BOOST_TEST((swapped == want_swapped));
    }
  }
}

BOOST_DATA_TEST_CASE(broadcast_from_every_root, bdata::make(kCounts), count) {
  for (int root = 0; root < comm().size(); ++root) {
    Bytes mine = data_of(comm().rank(), count, DType::BF16, 4);
    comm().broadcast(mine.data(), count, DType::BF16, root, "test.broadcast")->wait();
    BOOST_TEST((mine == data_of(root, count, DType::BF16, 4)));
  }
}

BOOST_DATA_TEST_CASE(send_and_recv_along_a_ring, bdata::make(kCounts), count) {
  const int size = comm().size(), rank = comm().rank();
  if (size == 1) return;
  const int next = (rank + 1) % size, previous = (rank + size - 1) % size;
  // Six messages in flight in each direction, received in the order they were sent.
  std::vector<Bytes> out, in;
  std::vector<WorkPtr> works;
  for (uint64_t m = 0; m < 6; ++m) {
    out.push_back(data_of(rank, count, DType::F32, 10 + m));
    in.emplace_back(out.back().size());
  }
  for (const Bytes& message : out)
    works.push_back(comm().send(message.data(), count, DType::F32, next, "test.send"));
  for (Bytes& message : in)
    works.push_back(comm().recv(message.data(), count, DType::F32, previous, "test.recv"));
  for (auto& work : works) work->wait();
  for (uint64_t m = 0; m < 6; ++m) BOOST_TEST((in[m] == data_of(previous, count, DType::F32, 10 + m)));
}

BOOST_AUTO_TEST_CASE(several_works_in_flight_finish_in_any_order) {
  constexpr int kWorks = 12;
  const int64_t count = 300007;
  std::vector<Bytes> mine;
  std::vector<WorkPtr> works;
  for (uint64_t w = 0; w < kWorks; ++w) mine.push_back(data_of(comm().rank(), count, DType::F32, 20 + w));
  for (auto& data : mine)
    works.push_back(comm().all_reduce(data.data(), count, DType::F32, ReduceOp::Sum, "test.many"));
  // Waiting order differs between ranks.
  for (int w = 0; w < kWorks; ++w) works[static_cast<size_t>((w * 5 + comm().rank()) % kWorks)]->wait();
  for (uint64_t w = 0; w < kWorks; ++w)
    BOOST_TEST((mine[w] == expected(data_of_all(comm().size(), count, DType::F32, 20 + w), count, DType::F32,
                                    ReduceOp::Sum)));
}

// Rank 0 waits for group a while rank 1 waits for group b: both must serve the other group meanwhile.
BOOST_AUTO_TEST_CASE(waiting_for_one_group_serves_the_others) {
  const auto other = test::world_comm();
  const int64_t count = 3000001;
  Bytes a = data_of(comm().rank(), count, DType::F32, 40), b = data_of(comm().rank(), count, DType::F32, 41);
  const auto on_a = comm().all_reduce(a.data(), count, DType::F32, ReduceOp::Sum, "test.group_a");
  const auto on_b = other->all_reduce(b.data(), count, DType::F32, ReduceOp::Sum, "test.group_b");
  (comm().rank() % 2 == 0 ? on_a : on_b)->wait();
  (comm().rank() % 2 == 0 ? on_b : on_a)->wait();
  BOOST_TEST(
      (a == expected(data_of_all(comm().size(), count, DType::F32, 40), count, DType::F32, ReduceOp::Sum)));
  BOOST_TEST(
      (b == expected(data_of_all(comm().size(), count, DType::F32, 41), count, DType::F32, ReduceOp::Sum)));
}

// Even and odd ranks, in reversed order within the group.
BOOST_AUTO_TEST_CASE(groups_are_disjoint_and_ordered) {
  const int size = comm().size(), rank = comm().rank();
  if (size < 2) return;
  std::vector<int> ranks;
  for (int r = size - 1; r >= 0; --r)
    if (r % 2 == rank % 2) ranks.push_back(r);
  const auto half =
      make_comm(test::job(), {.group = "half", .ranks = ranks, .cuda_device = {}, .timeout_s = {}});
  BOOST_TEST(half->size() == static_cast<int>(ranks.size()));
  BOOST_TEST(ranks[static_cast<size_t>(half->rank())] == rank);
  std::vector<int32_t> got(ranks.size());
  half->all_gather(&rank, got.data(), 1, DType::I32, "test.half")->wait();
  BOOST_TEST(got == ranks, boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(max_keeps_a_nan_and_integers_wrap) {
  float x = comm().rank() == comm().size() - 1 ? std::numeric_limits<float>::quiet_NaN() : 1.0f;
  comm().all_reduce(&x, 1, DType::F32, ReduceOp::Max, "test.nan")->wait();
  BOOST_TEST(std::isnan(x));
  if (comm().size() == 1) return;
  int64_t y = comm().rank() == 0 ? std::numeric_limits<int64_t>::max() : comm().rank() == 1 ? 1 : 0;
  comm().all_reduce(&y, 1, DType::I64, ReduceOp::Sum, "test.wrap")->wait();
  BOOST_TEST(y == std::numeric_limits<int64_t>::min());
}

BOOST_AUTO_TEST_CASE(wrong_calls_are_usage_errors) {
  const auto is_usage = [](const Error& e) { return e.kind() == ErrorKind::Usage; };
  int64_t x = 0;
  if (comm().size() > 1) {
    BOOST_CHECK_EXCEPTION(comm().all_reduce(&x, 8, DType::U8, ReduceOp::Sum, "test.u8"), Error, is_usage);
  }
  BOOST_CHECK_EXCEPTION(comm().all_reduce(&x, -1, DType::F32, ReduceOp::Sum, "test.negative"), Error,
                        is_usage);
  BOOST_CHECK_EXCEPTION(comm().broadcast(&x, 1, DType::F32, comm().size(), "test.root"), Error, is_usage);
  BOOST_CHECK_EXCEPTION(comm().send(&x, 1, DType::F32, comm().rank(), "test.self"), Error, is_usage);
}

BOOST_AUTO_TEST_CASE(barrier_returns) {
  comm().barrier("test.barrier");
  comm().barrier("test.barrier");
}
