// The flags that eval and generate share: --device, --dtype and --set parallel.*.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "trainer/device.h"

namespace hearth {

struct ModelOptions {
  std::string model;
  std::string device = "auto";
  std::string dtype;  // empty: as stored
  std::vector<std::string> overrides;

  void add_to(CLI::App& command) {
    command.add_option("MODEL", model, "Checkpoint, run folder (its newest verified checkpoint), or HF directory")
        ->required();
    command.add_option("--device", device, "auto, cpu or cuda")->capture_default_str();
    command.add_option("--dtype", dtype, "Compute in fp32 or bf16 (default: the stored dtype)");
    command.add_option("--set", overrides, "parallel.key=value: how ranks share the model under mpirun; repeatable")
        ->allow_extra_args(false);
  }
  std::optional<DType> parsed_dtype() const {
    if (dtype.empty()) return std::nullopt;
    const auto parsed = dtype_from_config(dtype);
    HEARTH_REQUIRE(parsed == DType::F32 || parsed == DType::BF16, "--dtype takes fp32 or bf16, got '{}'", dtype);
    return parsed;
  }
};

}  // namespace hearth
