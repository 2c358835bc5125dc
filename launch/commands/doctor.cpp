// hearth doctor: what a bug report starts with. Looks, tries a collective, and ends with 0 when a run could
// start.
#include <torch/version.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/log.h"
#include "data/hdf5_version.h"
#include "launch/build_info.h"
#include "launch/command.h"
#include "launch/commands/commands.h"
#include "launch/commands/experiment.h"
#include "launch/config_parser.h"
#include "launch/folder_probe.h"
#include "launch/run_config.h"
#include "parallel/binding.h"
#include "parallel/device_info.h"
#include "parallel/placement.h"
#include "parallel/self_test.h"
#include "trainer/device.h"
#include "trainer/parallel_layout.h"

namespace hearth {
namespace {

using Json = nlohmann::ordered_json;

struct DoctorOptions {
  bool json = false;
  std::string folder = ".", config;
  std::vector<std::string> overrides;
};

Json versions_json() {
  const BuildInfo& build = build_info();
  const ParallelVersions parallel = parallel_versions();
  const auto text_or = [](const std::optional<std::string>& text, const char* otherwise) {
    return text.value_or(otherwise);
  };
  return {{"hearth", build.version},
          {"git_commit", build.git_commit},
          {"compiler", build.compiler},
          {"build_type", build.build_type},
          {"cuda_toolkit", build.cuda},
          {"libtorch", TORCH_VERSION},
          {"mpi", parallel.mpi},
          {"nccl", text_or(parallel.nccl, "none (built without CUDA)")},
          {"cuda_runtime", text_or(parallel.cuda_runtime, "none (built without CUDA)")},
          {"cuda_driver", text_or(parallel.cuda_driver, "none")},
          {"hdf5", hdf5_version()}};
}

Json devices_json(const CudaDevices& found) {
  Json devices = Json::array();
  for (const auto& device : found.devices)
    devices.push_back(
        {{"index", device.index},
         {"name", device.name},
         {"memory_bytes", device.memory_bytes},
         {"compute_capability", fmt::format("{}.{}", device.compute_major, device.compute_minor)},
         {"multiprocessors", device.num_multiprocessors},
         {"pci_bus_id", device.pci_bus_id}});
  return devices;
}

Json folder_json(const FolderProbe& probe) {
  return {{"path", probe.path},
          {"writable", probe.writable},
          {"atomic_rename", probe.atomic_rename},
          {"exclusive_create", probe.exclusive_create},
          {"fsync_ms", std::round(probe.fsync_ms * 1000) / 1000},
          {"free_bytes", probe.free_bytes},
          {"trouble", probe.trouble}};
}

// Where each rank stands along the axes of the mesh: the layout of --config, or of --set alone.
Json ranks_json(const std::vector<RankPlace>& places, const std::vector<MeshPart>& parts) {
  Json ranks = Json::array();
  const auto coordinates = describe_coordinates(parts);
  for (const auto& place : places)
    ranks.push_back({{"rank", place.rank},
                     {"host", place.host},
                     {"local_rank", place.local_rank},
                     {"cores", place.cores},
                     {"device", place.device ? Json(*place.device) : Json()},
                     {"at", coordinates[static_cast<size_t>(place.rank)]}});
  return ranks;
}

std::vector<MeshPart> layout(const DoctorOptions& options, CommandContext& context) {
  const int ranks = context.job.control->world_size();
  if (options.config.empty())
    return {{"", Mesh::from_config(parse_parallel_overrides(options.overrides), ranks)}};
  const LoadedConfig loaded = load_experiment(context.fs, options.config, options.overrides);
  return mesh_parts(loaded.config.objective, require_layout(loaded, ranks));
}

// Collective. Sums 1 + 2 + ... + N over all ranks in host memory: the path that votes and CPU training take.
Json collective_json(const CollectiveCheck& check) {
  return {{"backend", check.backend},
          {"ranks", check.ranks},
          {"bytes", check.size_bytes},
          {"milliseconds", 1e3 * check.seconds},
          {"ok", true}};
}

// In host memory, and between devices where every rank has one.
Json try_collectives(CommandContext& context) {
  Json checks = Json::array({collective_json(check_collective(context.job, std::nullopt))});
  ControlPlane& control = *context.job.control;
  const at::Device device = select_device(DeviceChoice::Auto, control.local_rank());
  if (!control.vote(device.is_cuda(), "", "doctor.devices")) return checks;
  Log log({.rank = control.rank(), .world_size = control.world_size()});
  share_device(context, device, log);
  checks.push_back(collective_json(check_collective(context.job, device.index())));
  return checks;
}

void print_text(const Json& report) {
  for (const auto& [name, value] : report["versions"].items())
    std::cout << fmt::format("{:<14} {}\n", name, value.get<std::string>());
  std::cout << fmt::format("{:<14} {}\n", "launcher", report["launcher"].get<std::string>());
  for (const auto& rank : report["ranks"])
    std::cout << fmt::format("{:<14} {} on {}, cores {}, device {}, {}\n", "rank", rank["rank"].get<int>(),
                             rank["host"].get<std::string>(), rank["cores"].get<std::string>(),
                             rank["device"].is_null() ? "none" : rank["device"].dump(),
                             rank["at"].get<std::string>());
  std::cout << fmt::format("{:<14} {}\n", "layout", report["layout"].get<std::string>());
  for (const auto& warning : report["placement_warnings"])
    std::cout << fmt::format("{:<14} warning: {}\n", "placement", warning.get<std::string>());
  for (const auto& device : report["devices"])
    std::cout << fmt::format("{:<14} {} {}, {:.1f} GiB, compute capability {}\n", "gpu",
                             device["index"].get<int>(), device["name"].get<std::string>(),
                             static_cast<double>(device["memory_bytes"].get<int64_t>()) / (1 << 30),
                             device["compute_capability"].get<std::string>());
  if (report["devices"].empty())
    std::cout << fmt::format("{:<14} none: {}\n", "gpu", report["no_devices_because"].get<std::string>());
  const auto& folder = report["folder"];
  std::cout << fmt::format(
      "{:<14} {}: writable {}, atomic rename {}, exclusive create {}, fsync {:.2f} ms, {:.1f} GiB free{}\n",
      "folder", folder["path"].get<std::string>(), folder["writable"].get<bool>(),
      folder["atomic_rename"].get<bool>(), folder["exclusive_create"].get<bool>(),
      folder["fsync_ms"].get<double>(), static_cast<double>(folder["free_bytes"].get<int64_t>()) / (1 << 30),
      folder["trouble"].get<std::string>().empty() ? std::string()
                                                   : "; " + folder["trouble"].get<std::string>());
  for (const auto& check : report["collectives"])
    std::cout << fmt::format("{:<14} all_reduce over {} ranks ({}): right, {:.3f} ms for {} bytes\n",
                             "collective", check["ranks"].get<int>(), check["backend"].get<std::string>(),
                             check["milliseconds"].get<double>(), check["bytes"].get<int64_t>());
  std::cout << (report["ok"].get<bool>() ? "a run could start here\n" : "a run could not start here\n");
}

void run_doctor(const DoctorOptions& options, CommandContext& context) {
  ControlPlane& control = *context.job.control;
  const auto parts = layout(options, context);
  const CudaDevices devices = cuda_devices();
  const auto places =
      gather_places(control, device_of(control.local_rank(), static_cast<int>(devices.devices.size())));
  const Json collectives = try_collectives(context);
  const FolderProbe probe = probe_folder(context.fs, options.folder);
  std::vector<std::string> unusable;
  const bool ok = control.vote(probe.usable(), probe.trouble, "doctor.folder", &unusable);
  if (!ok) context.exit_code = exit_code(ErrorKind::Io);
  if (control.rank() != 0) return;
  const Json report = {{"ok", ok},
                       {"launcher", context.job.launcher},
                       {"versions", versions_json()},
                       {"layout", describe(parts)},
                       {"ranks", ranks_json(places, parts)},
                       {"placement_warnings", placement_warnings(parts, places)},
                       {"devices", devices_json(devices)},
                       {"no_devices_because", devices.why_none},
                       {"folder", folder_json(probe)},
                       {"collectives", collectives}};
  if (options.json) {
    std::cout << report.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n";
  } else {
    print_text(report);
  }
  for (const auto& reason : unusable) std::cerr << "folder " << options.folder << ": " << reason << "\n";
}

}  // namespace

void add_doctor_command(CLI::App& parent, CommandContext& context) {
  auto options = std::make_shared<DoctorOptions>();
  CLI::App* command =
      parent.add_subcommand("doctor", "Print versions, devices and abilities; 0 when a run could start here");
  command->add_flag("--json", options->json, "One JSON object on standard output");
  command->add_option("--folder", options->folder, "Folder to try: where runs will live")
      ->capture_default_str();
  command->add_option("--config", options->config, "Experiment file whose layout the map of ranks shows");
  command
      ->add_option("--set", options->overrides,
                   "parallel.key=value (with --config any section.key=value); repeatable")
      ->allow_extra_args(false);
  command->callback([options, &context] { run_doctor(*options, context); });
}

}  // namespace hearth
