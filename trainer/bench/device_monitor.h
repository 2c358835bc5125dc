// Clock and power of a GPU while something runs, as the driver's management library reports them. Only reads:
// nothing of the card is ever set. Where there is no GPU or no library, nothing is reported.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>

namespace hearth {

struct DeviceReadings {
  double sm_clock_mhz = 0, power_watts = 0;  // means over the time
  double max_sm_clock_mhz = 0, power_limit_watts = 0;
};

// Samples every 50 ms from its construction on, in a thread of its own.
class DeviceMonitor {
 public:
  explicit DeviceMonitor(at::Device device);
  ~DeviceMonitor();
  DeviceMonitor(const DeviceMonitor&) = delete;
  DeviceMonitor& operator=(const DeviceMonitor&) = delete;
  // Ends the sampling.
  std::optional<DeviceReadings> stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hearth
