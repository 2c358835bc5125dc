// JSON from files that nobody vouches for: safetensors headers, manifests, lock files, HF configs.
// The parser below is nlohmann's (not recursive); this adds the limits it lacks. Thread-safe: pure.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/error.h"

namespace hearth {

struct JsonLimits {
  int64_t max_depth = 64;                // nested arrays and objects
  int64_t max_values = 20'000'000;       // bounds memory: at most about 16 to 80 bytes each
  ErrorKind kind = ErrorKind::BadInput;  // what a violation is
};

// Parses the whole of `text`: valid UTF-8, no comments, no duplicate key in an object, no number out of
// range, nothing after the value. Throws Error{limits.kind} that starts with `what` (a file name) and says
// where.
nlohmann::json parse_json_strict(std::string_view text, std::string_view what, const JsonLimits& limits = {});

}  // namespace hearth
