#include "base/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <utility>

#include "base/error.h"

namespace hearth {
namespace {
spdlog::level::level_enum spdlog_level(LogLevel level) {
  switch (level) {
    case LogLevel::Debug:
      return spdlog::level::debug;
    case LogLevel::Info:
      return spdlog::level::info;
    case LogLevel::Warning:
      return spdlog::level::warn;
    case LogLevel::Error:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}
}  // namespace

struct Log::Impl {
  Options options;
  spdlog::logger logger{"hearth"};
};

Log::Log(const Options& options) : impl_(std::make_unique<Impl>()) {
  impl_->options = options;
  impl_->logger.set_level(spdlog_level(options.level));
  auto console = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  console->set_pattern("%H:%M:%S %L %v");
  // Other ranks' trouble still reaches the terminal; their routine lines go to their files only.
  console->set_level(options.rank == 0 ? spdlog::level::trace : spdlog::level::warn);
  impl_->logger.sinks().push_back(std::move(console));
  if (!options.file.empty()) open_file(options.file);
}
Log::~Log() = default;

void Log::open_file(const std::string& path) {
  try {
    auto sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path, /*truncate=*/false);
    sink->set_pattern(fmt::format("%Y-%m-%dT%H:%M:%S.%e %L rank={} %v", impl_->options.rank));
    impl_->logger.sinks().push_back(std::move(sink));
    impl_->logger.flush_on(spdlog::level::info);
  } catch (const spdlog::spdlog_ex& e) {
    fail(ErrorKind::Io, "cannot open log file {}: {}", path, e.what());
  }
}

void Log::write(LogLevel level, std::string_view line) {
  impl_->logger.log(spdlog_level(level), spdlog::string_view_t(line.data(), line.size()));
}

void Log::flush() {
  impl_->logger.flush();
}

}  // namespace hearth
