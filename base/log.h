// Log lines are `key=value`, one event a line. Rank 0 speaks for the job on stderr; every rank writes its own
// file. Thread-safe. Passed in as context; there is no global logger.
#pragma once

#include <fmt/core.h>

#include <memory>
#include <string>
#include <string_view>

namespace hearth {

enum class LogLevel { Debug, Info, Warning, Error };

class Log {
 public:
  struct Options {
    int rank = 0;
    int world_size = 1;
    LogLevel level = LogLevel::Info;
    std::string file;  // empty: no file
  };
  Log() : Log(Options{}) {}
  explicit Log(const Options& options);
  ~Log();
  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;

  // Starts writing to `path` too (a rank learns its run folder after the first lines).
  void open_file(const std::string& path);

  template <class... Args>
  void debug(fmt::format_string<Args...> format, Args&&... args) {
    write(LogLevel::Debug, fmt::format(format, std::forward<Args>(args)...));
  }
  template <class... Args>
  void info(fmt::format_string<Args...> format, Args&&... args) {
    write(LogLevel::Info, fmt::format(format, std::forward<Args>(args)...));
  }
  template <class... Args>
  void warning(fmt::format_string<Args...> format, Args&&... args) {
    write(LogLevel::Warning, fmt::format(format, std::forward<Args>(args)...));
  }
  template <class... Args>
  void error(fmt::format_string<Args...> format, Args&&... args) {
    write(LogLevel::Error, fmt::format(format, std::forward<Args>(args)...));
  }
  void flush();

 private:
  void write(LogLevel level, std::string_view line);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hearth
