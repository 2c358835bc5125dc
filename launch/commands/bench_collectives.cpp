// hearth bench collectives: what passes between the ranks of this job, beside NCCL's or MPI's own calls.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "launch/build_info.h"
#include "launch/command.h"
#include "launch/commands/commands.h"
#include "launch/commands/experiment.h"
#include "parallel/collective_bench.h"
#include "parallel/device_info.h"
#include "trainer/device.h"

namespace hearth {
namespace {

struct BenchCollectivesOptions {
  int64_t min_bytes = 1 << 20;
  std::optional<int64_t> max_bytes;
  std::optional<std::string> dtype;
  std::string device = "auto";
  int max_ctas = 0;
  bool json = false;
};

struct Report {
  std::string backend, library, device, dtype;
  int ranks = 0;
  std::vector<CollectiveTiming> timings;

  double algorithm_gbps(const CollectiveTiming& t) const {
    return static_cast<double>(t.size_bytes) / t.seconds / 1e9;
  }
  double bus_gbps(const CollectiveTiming& t, double seconds) const {
    return bus_bandwidth(t.op, ranks, t.size_bytes, seconds) / 1e9;
  }
};

std::string size_text(int64_t size_bytes) {
  auto size = static_cast<double>(size_bytes);
  const char* unit = "B";
  for (const char* larger : {"KiB", "MiB", "GiB"}) {
    if (size < 1024) break;
    size /= 1024;
    unit = larger;
  }
  return fmt::format("{:.4g} {}", size, unit);
}

nlohmann::ordered_json to_json(const Report& r) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const CollectiveTiming& t : r.timings)
    rows.push_back({{"op", name(t.op)},
                    {"bytes", t.size_bytes},
                    {"calls", t.calls},
                    {"us", 1e6 * t.seconds},
                    {"algorithm_gb_per_s", r.algorithm_gbps(t)},
                    {"bus_gb_per_s", r.bus_gbps(t, t.seconds)},
                    {"library_us", 1e6 * t.library_seconds},
                    {"library_bus_gb_per_s", r.bus_gbps(t, t.library_seconds)},
                    {"ratio", t.library_seconds / t.seconds}});
  return {{"build", build_id()}, {"backend", r.backend}, {"library", r.library}, {"device", r.device},
          {"ranks", r.ranks},    {"dtype", r.dtype},     {"rows", rows}};
}

void print_text(const Report& r) {
  const std::string own = r.backend == "nccl" ? "NCCL" : "MPI";
  fmt::print("{} ranks, {}, {}, {}; ratio: time of {} itself over Hearth's\n", r.ranks, r.device, r.library,
             r.dtype, own);
  fmt::print("{:<20}{:>10}{:>13}{:>11}{:>11}{:>13}{:>11}{:>8}\n", "op", "size", "Hearth us", "alg GB/s",
             "bus GB/s", own + " us", "bus GB/s", "ratio");
  for (const CollectiveTiming& t : r.timings)
    fmt::print("{:<20}{:>10}{:>13.1f}{:>11.2f}{:>11.2f}{:>13.1f}{:>11.2f}{:>8.2f}\n", name(t.op),
               size_text(t.size_bytes), 1e6 * t.seconds, r.algorithm_gbps(t), r.bus_gbps(t, t.seconds),
               1e6 * t.library_seconds, r.bus_gbps(t, t.library_seconds), t.library_seconds / t.seconds);
}

// "NCCL 2.28.9", "Open MPI v4.1.4": without what MPI says of its build.
std::string library_text(bool cuda) {
  const ParallelVersions versions = parallel_versions();
  return cuda ? "NCCL " + versions.nccl.value_or("unknown") : versions.mpi.substr(0, versions.mpi.find(','));
}

void run_bench_collectives(const BenchCollectivesOptions& options, CommandContext& context) {
  const ControlPlane& control = *context.job.control;
  Log log({.rank = control.rank(), .world_size = control.world_size()});
  const at::Device device =
      take_device(options.device, Mesh::from_config({}, control.world_size()), context).device;
  share_device(context, device, log);
  const bool cuda = device.is_cuda();
  const std::string dtype = options.dtype.value_or(cuda ? "bf16" : "fp32");
  Report report{.backend = cuda ? "nccl" : "mpi",
                .library = library_text(cuda),
                .device = device_name(device),
                .dtype = dtype,
                .ranks = control.world_size(),
                .timings = {}};
  report.timings = bench_collectives(
      context.job, {.cuda_device = cuda ? std::optional<int>(device.index()) : std::nullopt,
                    .dtype = *dtype_from_config(dtype),
                    .max_ctas = options.max_ctas,
                    .min_bytes = options.min_bytes,
                    .max_bytes = options.max_bytes.value_or(cuda ? int64_t{1} << 30 : int64_t{16} << 20),
                    .on_timing = [&](const CollectiveTiming& t) {
                      log.info("event=collective op={} size_bytes={} calls={} us={:.1f} library_us={:.1f}",
                               name(t.op), t.size_bytes, t.calls, 1e6 * t.seconds, 1e6 * t.library_seconds);
                    }});
  if (control.rank() != 0) return;
  if (options.json) {
    std::cout << to_json(report).dump() << "\n";
  } else {
    print_text(report);
  }
}

}  // namespace

void add_bench_collectives_command(CLI::App& parent, CommandContext& context) {
  auto options = std::make_shared<BenchCollectivesOptions>();
  CLI::App* command = parent.add_subcommand(
      "collectives", "all_reduce, reduce_scatter and all_gather over all ranks, beside NCCL's or MPI's own");
  command->add_option("--min-bytes", options->min_bytes, "First size; each next one is four times as large")
      ->capture_default_str()
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false));
  command
      ->add_option("--max-bytes", options->max_bytes,
                   "No size is larger; default 1gb on GPUs, 16mb on the CPU")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false));
  command
      ->add_option("--dtype", options->dtype,
                   "bf16 (default on GPUs) or fp32 (alone on the CPU: MPI has no bf16)")
      ->check(CLI::IsMember({"bf16", "fp32"}));
  command
      ->add_option(
          "--max-ctas", options->max_ctas,
          "NCCL: most thread blocks of one of Hearth's collectives; 0: NCCL's choice. Training has 16 "
          "for data parallelism")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--device", options->device, "auto, cpu or cuda")->capture_default_str();
  command->add_flag("--json", options->json, "One JSON object on standard output");
  command->callback([options, &context] { run_bench_collectives(*options, context); });
}

}  // namespace hearth
