// The flags that verbs which compute with a model share: --device, --dtype and --set parallel.*.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/error.h"
#include "base/log.h"
#include "parallel/control_plane.h"
#include "parallel/parallel_config.h"
#include "trainer/device.h"

namespace hearth {

// How ranks share a model that answers: `--set parallel.key=value` of a verb, or `otherwise` where there are
// none. Keys that only a training needs are named on standard error: a layout can be given as an experiment
// file has it. Collective; the deadline counts from here on.
ParallelConfig layout_to_answer(const std::vector<std::string>& overrides, const ParallelConfig& otherwise,
                                ControlPlane& control, Log& log);

struct ModelOptions {
  std::string model;
  std::string device = "auto";
  std::string dtype;  // empty: as stored
  std::vector<std::string> overrides;

  void add_to(CLI::App& command) {
    command
        .add_option("MODEL", model,
                    "Checkpoint, run folder (its newest verified checkpoint), or HF directory")
        ->required();
    command.add_option("--device", device, "auto, cpu or cuda")->capture_default_str();
    command.add_option("--dtype", dtype, "Compute in fp32 or bf16 (default: the stored dtype)");
    command
        .add_option("--set", overrides,
                    "parallel.key=value: how ranks share the model under mpirun; repeatable")
        ->allow_extra_args(false);
  }
  std::optional<DType> parsed_dtype() const {
    if (dtype.empty()) return std::nullopt;
    const auto parsed = dtype_from_config(dtype);
    HEARTH_REQUIRE(parsed == DType::F32 || parsed == DType::BF16, "--dtype takes fp32 or bf16, got '{}'",
                   dtype);
    return parsed;
  }
};

}  // namespace hearth
