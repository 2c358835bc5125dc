// The steps of `hearth watch` are programs of their own, so that a step that runs out of memory or meets a
// bad file takes nothing along. An interface, so that tests of the loop need none. Not thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace hearth {

struct ChildCommand {
  std::vector<std::string> words;  // program and arguments, passed as they are: no shell looks at them
  std::string output;              // file for standard output, replaced
  std::string log;                 // file for standard error, appended
};

struct ChildResult {
  int code = 0;            // exit code; 128 + signal where it was killed
  std::string last_lines;  // of what it wrote to standard error
};

class ChildRunner {
 public:
  virtual ~ChildRunner() = default;
  // Waits for the end. Throws Error{Io} where the program cannot be started.
  virtual ChildResult run(const ChildCommand& command) = 0;
};

// A real child, in a process group of its own, without standard input, killed by the kernel should this
// process die. Once `stop_requested` says so it gets one SIGTERM: a training saves and ends with 75.
std::unique_ptr<ChildRunner> make_process_runner(std::function<bool()> stop_requested);

}  // namespace hearth
