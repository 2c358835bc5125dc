#include "parallel/collective_bench.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <string>

#include "base/error.h"
#include "base/quantile.h"
#include "parallel/library_collectives.h"

namespace hearth {
namespace {

using enum CollectiveSide;

constexpr BenchCollective kCollectives[] = {BenchCollective::AllReduce, BenchCollective::ReduceScatter,
                                            BenchCollective::AllGather, BenchCollective::WindowedAllGather};
constexpr int64_t kSizeFactor = 4;
// Values are compared on the host: large enough for several chunks and segments of either library.
constexpr int64_t kCheckBytes = 1 << 20;
// Long beside the way into the first call and out of the last one.
constexpr double kRunSeconds = 0.02;
constexpr int64_t kMinCalls = 3, kMaxCalls = 100;  // see LibraryCollectives::seconds
constexpr int kRounds = 9;

std::unique_ptr<LibraryCollectives> make_library(Job& job, const CollectiveBenchOptions& options) {
#if HEARTH_NCCL
  if (options.cuda_device) return make_nccl_collectives(job, options.dtype);
#endif
  return make_mpi_collectives(job, options.dtype);  // without NCCL make_comm has refused a device
}

class Bench {
 public:
  Bench(Job& job, const CollectiveBenchOptions& options, int64_t largest_bytes)
      : control_(*job.control),
        dtype_(options.dtype),
        on_device_(options.cuda_device.has_value()),
        comm_(make_comm(job, {.group = "bench",
                              .ranks = job.control->all_ranks(),
                              .cuda_device = options.cuda_device,
                              .timeout_s = {},
                              .max_ctas = options.max_ctas})),
        library_(make_library(job, options)),
        whole_bytes_(largest_bytes),
        chunk_bytes_(largest_bytes / comm_->size()),
        ordinary_{library_->allocate(whole_bytes_), library_->allocate(chunk_bytes_)},
        window_memory_{comm_->allocate(whole_bytes_), comm_->allocate(chunk_bytes_)},
        windows_{static_cast<std::byte*>(window_memory_[0].get()),
                 static_cast<std::byte*>(window_memory_[1].get())} {
    comm_->set_compute_stream(library_->compute_stream());
  }

  bool can_measure(BenchCollective op) const {
    return op != BenchCollective::WindowedAllGather || (windows_.whole && windows_.chunk);
  }

  void check(BenchCollective op, int64_t size_bytes);
  CollectiveTiming measure(BenchCollective op, int64_t size_bytes);

 private:
  struct Buffers {
    std::byte *whole, *chunk;
  };
  const Buffers& buffers(CollectiveSide side, BenchCollective op) const {
    return side == Hearth && op == BenchCollective::WindowedAllGather ? windows_ : ordinary_;
  }
  WorkPtr issue(CollectiveSide side, BenchCollective op, int64_t size_bytes);
  void call(CollectiveSide side, BenchCollective op, int64_t size_bytes, int64_t calls);
  std::string wrong_value(CollectiveSide side, BenchCollective op, int64_t size_bytes);
  double seconds_per_call(CollectiveSide side, BenchCollective op, int64_t size_bytes, int64_t calls);
  std::vector<std::byte> encode(const std::vector<float>& values) const;
  void fill(const Buffers& buffers, int value) {
    library_->fill(buffers.whole, value, whole_bytes_);
    library_->fill(buffers.chunk, value, chunk_bytes_);
  }

  ControlPlane& control_;
  DType dtype_;
  bool on_device_;
  std::unique_ptr<Comm> comm_;
  std::unique_ptr<LibraryCollectives> library_;
  int64_t whole_bytes_, chunk_bytes_;
  Buffers ordinary_;                                    // memory of library_
  std::array<std::shared_ptr<void>, 2> window_memory_;  // of comm_; null where it has none
  Buffers windows_;
};

// Null from the library, which needs no wait.
WorkPtr Bench::issue(CollectiveSide side, BenchCollective op, int64_t size_bytes) {
  const int64_t count = size_bytes / hearth::size_bytes(dtype_), share = count / comm_->size();
  const auto [whole, chunk] = buffers(side, op);
  switch (op) {
    case BenchCollective::AllReduce:
      if (side == Hearth) return comm_->all_reduce(whole, count, dtype_, ReduceOp::Sum, "bench.all_reduce");
      library_->all_reduce(whole, count);
      break;
    case BenchCollective::ReduceScatter:
      if (side == Hearth) return comm_->reduce_scatter(whole, chunk, share, dtype_, "bench.reduce_scatter");
      library_->reduce_scatter(whole, chunk, share);
      break;
    case BenchCollective::AllGather:
    case BenchCollective::WindowedAllGather:
      if (side == Hearth) return comm_->all_gather(chunk, whole, share, dtype_, "bench.all_gather");
      library_->all_gather(chunk, whole, share);
  }
  return nullptr;
}

// On a device the calls follow one another in its stream and are waited for at the end, as the buckets of
// gradients are. Over MPI, whose calls under way must not share a buffer, each ends before the next.
void Bench::call(CollectiveSide side, BenchCollective op, int64_t size_bytes, int64_t calls) {
  std::vector<WorkPtr> under_way;
  for (int64_t i = 0; i < calls; ++i) {
    WorkPtr work = issue(side, op, size_bytes);
    if (work == nullptr) continue;
    if (!on_device_) work->wait();
    under_way.push_back(std::move(work));
  }
  for (const auto& work : under_way) work->wait();
}

std::vector<std::byte> Bench::encode(const std::vector<float>& values) const {
  std::vector<std::byte> out(values.size() * static_cast<size_t>(size_bytes(dtype_)));
  convert(DType::F32, values.data(), dtype_, out.data(), std::ssize(values));
  return out;
}

// Empty where this rank's result is right. Rank r gathers its number. Each element of a reduction is the
// number of one rank there, 1 on the next rank and 0 elsewhere, and no two chunks are alike: a sum, no
// maximum and no other rank's chunk, exact in every type over any number of ranks.
std::string Bench::wrong_value(CollectiveSide side, BenchCollective op, int64_t size_bytes) {
  const int64_t count = size_bytes / hearth::size_bytes(dtype_), share = count / comm_->size();
  const int rank = comm_->rank(), size = comm_->size();
  const bool gathers = op == BenchCollective::AllGather || op == BenchCollective::WindowedAllGather;
  const bool scatters = op == BenchCollective::ReduceScatter;
  const auto number_of = [](int64_t of_rank) { return static_cast<float>(of_rank % 128 + 1); };
  const auto giver = [&](int64_t i) { return (i % share + i / share) % size; };

  std::vector<float> send(static_cast<size_t>(gathers ? share : count), number_of(rank));
  if (!gathers)
    for (int64_t i = 0; i < count; ++i)
      if (giver(i) != rank) send[static_cast<size_t>(i)] = (giver(i) + 1) % size == rank ? 1.f : 0.f;
  std::vector<float> want(static_cast<size_t>(scatters ? share : count));
  const int64_t first = scatters ? rank * share : 0;
  for (int64_t i = 0; i < std::ssize(want); ++i)
    want[static_cast<size_t>(i)] = number_of(gathers ? i / share : giver(first + i)) + (gathers ? 0.f : 1.f);

  const Buffers& memory = buffers(side, op);
  fill(memory, 0xff);  // NaN: what an earlier call left there must not pass for a result
  const auto sent = encode(send), expected = encode(want);
  library_->copy(gathers ? memory.chunk : memory.whole, sent.data(), std::ssize(sent));
  library_->run(side, [&] { call(side, op, size_bytes, 1); });
  std::vector<std::byte> got(expected.size());
  library_->copy(got.data(), scatters ? memory.chunk : memory.whole, std::ssize(got));

  const auto odd = std::mismatch(got.begin(), got.end(), expected.begin());
  if (odd.first == got.end()) return "";
  const auto at = (odd.first - got.begin()) / hearth::size_bytes(dtype_);
  float value = 0;
  convert(dtype_, got.data() + at * hearth::size_bytes(dtype_), DType::F32, &value, 1);
  return fmt::format("{} at element {}, expected {}", value, at, want[static_cast<size_t>(at)]);
}

void Bench::check(BenchCollective op, int64_t size_bytes) {
  for (const CollectiveSide side : {Hearth, Library}) {
    const std::string wrong = wrong_value(side, op, size_bytes);
    std::vector<std::string> reasons;
    const bool right = control_.vote(wrong.empty(), wrong, "bench.values", &reasons);
    HEARTH_CHECK(right, Peer, "{} of {} over {} gave a wrong value on {} of {} ranks; {}", name(op),
                 side == Hearth ? "Hearth" : "the library", comm_->backend(), reasons.size(), comm_->size(),
                 reasons.front());
  }
  for (const CollectiveSide side : {Hearth, Library})
    fill(buffers(side, op), 0);  // zeros stay zeros, however often they are added up
}

// On the slowest rank.
double Bench::seconds_per_call(CollectiveSide side, BenchCollective op, int64_t size_bytes, int64_t calls) {
  control_.barrier("bench.start");
  const double mine = library_->seconds(
      side, [&] { call(side, op, size_bytes, 1); }, [&] { call(side, op, size_bytes, calls); });
  const int64_t slowest_ns = control_.all_reduce_max(std::llround(mine * 1e9), "bench.slowest");
  return static_cast<double>(std::max<int64_t>(slowest_ns, 1)) / 1e9 / static_cast<double>(calls);
}

CollectiveTiming Bench::measure(BenchCollective op, int64_t size_bytes) {
  // The first calls of a size may set up links and scratch.
  for (const CollectiveSide side : {Hearth, Library})
    library_->run(side, [&] { call(side, op, size_bytes, 1); });
  const double pair = seconds_per_call(Hearth, op, size_bytes, kMinCalls) +
                      seconds_per_call(Library, op, size_bytes, kMinCalls);
  // The same on all ranks, as `pair` is.
  const auto calls = static_cast<int64_t>(
      std::clamp(2 * kRunSeconds / pair, static_cast<double>(kMinCalls), static_cast<double>(kMaxCalls)));
  std::vector<double> hearth, library;
  for (int round = 0; round < kRounds; ++round)  // in turn, so that a drift of the machine meets both
    for (const CollectiveSide side : {round % 2 == 0 ? Hearth : Library, round % 2 == 0 ? Library : Hearth})
      (side == Hearth ? hearth : library).push_back(seconds_per_call(side, op, size_bytes, calls));
  return {.op = op,
          .size_bytes = size_bytes,
          .calls = calls,
          .seconds = quantile(hearth, 0.5),
          .library_seconds = quantile(library, 0.5)};
}

}  // namespace

std::string_view name(BenchCollective op) {
  switch (op) {
    case BenchCollective::AllReduce:
      return "all_reduce";
    case BenchCollective::ReduceScatter:
      return "reduce_scatter";
    case BenchCollective::AllGather:
      return "all_gather";
    default:
      return "all_gather_windows";
  }
}

std::vector<int64_t> bench_sizes(int64_t min_bytes, int64_t max_bytes, int64_t granule_bytes) {
  HEARTH_REQUIRE(min_bytes >= 1 && min_bytes <= max_bytes,
                 "sizes from {} to {} bytes: the first must be at least 1, and the second no smaller",
                 min_bytes, max_bytes);
  std::vector<int64_t> sizes;
  for (int64_t size = min_bytes;; size *= kSizeFactor) {
    const int64_t whole = std::max(size / granule_bytes, int64_t{1}) * granule_bytes;
    if (sizes.empty() || whole > sizes.back()) sizes.push_back(whole);
    if (size > max_bytes / kSizeFactor) return sizes;
  }
}

double bus_bandwidth(BenchCollective op, int ranks, int64_t size_bytes, double seconds) {
  const double rounds = op == BenchCollective::AllReduce ? 2 : 1;
  return rounds * (ranks - 1) / ranks * static_cast<double>(size_bytes) / seconds;
}

std::vector<CollectiveTiming> bench_collectives(Job& job, const CollectiveBenchOptions& options) {
  const int ranks = job.control->world_size();
  HEARTH_REQUIRE(ranks > 1,
                 "collectives are measured between ranks, and this job has one: start it on at least two, "
                 "`launch/mpirun.sh 2 hearth bench collectives`");
  const int64_t granule = ranks * size_bytes(options.dtype);
  const auto sizes = bench_sizes(options.min_bytes, options.max_bytes, granule);
  Bench bench(job, options, sizes.back());
  std::vector<CollectiveTiming> timings;
  for (const BenchCollective op : kCollectives) {
    if (!bench.can_measure(op)) continue;
    bench.check(op, std::min(sizes.back(), kCheckBytes / granule * granule));
    for (const int64_t size : sizes) {
      timings.push_back(bench.measure(op, size));
      if (options.on_timing) options.on_timing(timings.back());
    }
  }
  return timings;
}

}  // namespace hearth
