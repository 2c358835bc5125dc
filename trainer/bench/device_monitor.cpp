#include "trainer/bench/device_monitor.h"

#include <dlfcn.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "trainer/device.h"

namespace hearth {
namespace {

// The few calls of NVML that are needed, found at run time: the library comes with the driver, and a machine
// without a GPU has none. Signatures and numbers as in NVIDIA's nvml.h, whose ABI is stable.
class Nvml {
 public:
  static constexpr int kSuccess = 0, kSmClock = 1;
  using Device = void*;
  Nvml() : library_(dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)) {
    if (library_ == nullptr) return;
    find(init_, "nvmlInit_v2");
    find(shutdown_, "nvmlShutdown");
    find(by_bus_id_, "nvmlDeviceGetHandleByPciBusId_v2");
    find(clock_, "nvmlDeviceGetClockInfo");
    find(max_clock_, "nvmlDeviceGetMaxClockInfo");
    find(power_, "nvmlDeviceGetPowerUsage");
    find(limit_, "nvmlDeviceGetEnforcedPowerLimit");
    ready_ =
        init_ && shutdown_ && by_bus_id_ && clock_ && max_clock_ && power_ && limit_ && init_() == kSuccess;
  }
  ~Nvml() {
    if (ready_) shutdown_();
    if (library_ != nullptr) dlclose(library_);
  }
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  Device device(const std::string& bus_id) const {
    Device handle = nullptr;
    return ready_ && !bus_id.empty() && by_bus_id_(bus_id.c_str(), &handle) == kSuccess ? handle : nullptr;
  }
  // Clocks in MHz, power in watts; 0 where the card does not say.
  double clock(Device device) const {
    return read([&](unsigned* value) { return clock_(device, kSmClock, value); });
  }
  double max_clock(Device device) const {
    return read([&](unsigned* value) { return max_clock_(device, kSmClock, value); });
  }
  double power(Device device) const {
    return read([&](unsigned* value) { return power_(device, value); }) / 1000;
  }
  double limit(Device device) const {
    return read([&](unsigned* value) { return limit_(device, value); }) / 1000;
  }

 private:
  template <class Function>
  void find(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(library_, name));
  }
  template <class Call>
  static double read(Call&& call) {
    unsigned value = 0;
    return call(&value) == kSuccess ? static_cast<double>(value) : 0.0;
  }

  void* library_;
  bool ready_ = false;
  int (*init_)() = nullptr;
  int (*shutdown_)() = nullptr;
  int (*by_bus_id_)(const char*, Device*) = nullptr;
  int (*clock_)(Device, int, unsigned*) = nullptr;
  int (*max_clock_)(Device, int, unsigned*) = nullptr;
  int (*power_)(Device, unsigned*) = nullptr;
  int (*limit_)(Device, unsigned*) = nullptr;
};

}  // namespace

struct DeviceMonitor::Impl {
  Nvml nvml;
  Nvml::Device device = nullptr;
  std::mutex mutex;
  std::condition_variable wake;
  bool stopping = false;
  double clocks = 0, watts = 0;
  int samples = 0;
  std::thread thread;

  void run() {
    std::unique_lock lock(mutex);
    while (!wake.wait_for(lock, std::chrono::milliseconds(50), [this] { return stopping; })) {
      clocks += nvml.clock(device);
      watts += nvml.power(device);
      ++samples;
    }
  }
};

DeviceMonitor::DeviceMonitor(at::Device device) : impl_(std::make_unique<Impl>()) {
  impl_->device = impl_->nvml.device(device_bus_id(device));
  if (impl_->device != nullptr) impl_->thread = std::thread([this] { impl_->run(); });
}

DeviceMonitor::~DeviceMonitor() {
  stop();
}

std::optional<DeviceReadings> DeviceMonitor::stop() {
  if (!impl_->thread.joinable()) return std::nullopt;
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
  }
  impl_->wake.notify_one();
  impl_->thread.join();
  if (impl_->samples == 0) return std::nullopt;
  return DeviceReadings{.sm_clock_mhz = impl_->clocks / impl_->samples,
                        .power_watts = impl_->watts / impl_->samples,
                        .max_sm_clock_mhz = impl_->nvml.max_clock(impl_->device),
                        .power_limit_watts = impl_->nvml.limit(impl_->device)};
}

}  // namespace hearth
