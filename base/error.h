// The one exception type of Hearth and the macros that raise it.
// A message has: what failed, the value seen, the value expected, what is safe, what to do.
// Thread-safe: all functions are pure.
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <exception>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace hearth {

// What kind of trouble it is decides the exit code and whether a requeue makes sense (see exit_code).
enum class ErrorKind {
  Usage,      // wrong command line, or a caller broke a function's contract
  Config,     // experiment file, mesh, world size
  BadInput,   // shard, tokenizer, model file, corpus
  Io,         // the operating system refused
  Corrupt,    // no usable checkpoint, digest mismatch
  NoSpace,    // disk or quota full
  Numeric,    // a non-finite loss, gradient or parameter
  Peer,       // another rank or a link was lost
  Timeout,    // a deadline passed
  Cuda,       // device error
  InUse,      // the run folder belongs to another job
  Preempted,  // asked to stop; resume later
  Internal,   // our bug
};

std::string_view name(ErrorKind kind);

// The table of reliability.md: 2 Usage, 3 Config, 4 BadInput, 5 Corrupt, 6 Numeric, 7 Timeout, 8 Peer,
// 9 Io and NoSpace, 10 InUse, 11 Cuda, 70 Internal, 75 Preempted.
int exit_code(ErrorKind kind);

class Error : public std::exception {
 public:
  Error(ErrorKind kind, std::string message) : kind_(kind), message_(std::move(message)) { render(); }

  ErrorKind kind() const { return kind_; }
  const std::string& message() const { return message_; }
  const char* what() const noexcept override { return rendered_.c_str(); }

  // Adds a detail line `key  value` while unwinding (file, shard, step). Returns *this, so it chains.
  Error& with(std::string_view key, std::string_view value);

 private:
  void render();
  ErrorKind kind_;
  std::string message_;
  std::vector<std::pair<std::string, std::string>> details_;
  std::string rendered_;
};

template <class... Args>
[[noreturn]] void fail(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(kind, fmt::format(format, std::forward<Args>(args)...));
}

// For trouble that the caller or the user made. Kept in release builds.
#define HEARTH_REQUIRE(condition, ...)                                         \
  do {                                                                         \
    if (!(condition)) ::hearth::fail(::hearth::ErrorKind::Usage, __VA_ARGS__); \
  } while (false)

// The same with a kind: HEARTH_CHECK(size > 0, BadInput, "{}: empty", path).
#define HEARTH_CHECK(condition, kind, ...)                                    \
  do {                                                                        \
    if (!(condition)) ::hearth::fail(::hearth::ErrorKind::kind, __VA_ARGS__); \
  } while (false)

// For our own bugs. Kept in release builds.
#define HEARTH_ASSERT(condition)                                                                             \
  do {                                                                                                       \
    if (!(condition))                                                                                        \
      ::hearth::fail(::hearth::ErrorKind::Internal, "{}:{}: broken invariant: {} (please report)", __FILE__, \
                     __LINE__, #condition);                                                                  \
  } while (false)

// Converts between integer types; throws Internal where the value does not fit.
template <class To, class From>
To checked_cast(From value) {
  static_assert(std::is_integral_v<To> && std::is_integral_v<From>);
  HEARTH_ASSERT(std::in_range<To>(value));
  return static_cast<To>(value);
}

// Products and sums of sizes that come from files; throw BadInput on overflow.
inline int64_t checked_mul(int64_t a, int64_t b) {
  int64_t out = 0;
  HEARTH_CHECK(!__builtin_mul_overflow(a, b, &out), BadInput, "size overflows: {} x {}", a, b);
  return out;
}
inline int64_t checked_add(int64_t a, int64_t b) {
  int64_t out = 0;
  HEARTH_CHECK(!__builtin_add_overflow(a, b, &out), BadInput, "size overflows: {} + {}", a, b);
  return out;
}

}  // namespace hearth
