// Any struct with visit() as a flat list of keys, and the difference of two such lists at a resume.
// Values are canonical text: JSON (which is YAML too), so equal values have equal text and a reader can parse
// them. A list is one key, whatever it holds ("data.train"). Pure functions, thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/config_visit.h"

namespace hearth {

struct FlatKey {
  std::string key;    // "optimizer.lr"
  std::string value;  // canonical text: 0.0003, "cosine", null, [{"path": "shards/a", "weight": 1.0}]
  OnResume on_resume = OnResume::Frozen;
  std::string doc;
  bool operator==(const FlatKey&) const = default;
};

// Canonical text of scalars. A double keeps every bit (shortest form that reads back equal) and always looks
// like one ("1.0"); non-finite values are .nan, .inf, -.inf as in YAML.
std::string canonical_text(bool value);
std::string canonical_text(int64_t value);
std::string canonical_text(double value);
std::string canonical_text(const std::string& value);  // JSON string, UTF-8 (invalid bytes become U+FFFD)
template <class T>
std::string canonical_text(const std::optional<T>& value) {
  return value ? canonical_text(*value) : "null";
}

namespace detail {
template <class T>
inline constexpr bool is_scalar_field = std::is_same_v<T, bool> || std::is_same_v<T, int64_t> ||
                                        std::is_same_v<T, double> || std::is_same_v<T, std::string>;
template <class T>
inline constexpr bool is_vector_field = false;
template <class T>
inline constexpr bool is_vector_field<std::vector<T>> = true;
template <class T>
inline constexpr bool is_optional_field = false;
template <class T>
inline constexpr bool is_optional_field<std::optional<T>> = true;

template <class T>
std::string element_text(T& element) {
  if constexpr (is_scalar_field<T>) {
    return canonical_text(element);
  } else {
    std::string out;
    element.visit([&](std::string_view name, auto& field, OnResume, std::string_view) {
      out += (out.empty() ? "\"" : ", \"") + std::string(name) + "\": " + element_text(field);
    });
    return "{" + out + "}";
  }
}

template <class T>
std::string list_text(std::vector<T>& list) {
  std::string out;
  for (auto& element : list) out += (out.empty() ? "" : ", ") + element_text(element);
  return "[" + out + "]";
}

template <class T>
void flatten_into(std::vector<FlatKey>& out, const std::string& prefix, T& config) {
  config.visit([&](std::string_view name, auto& field, OnResume on_resume, std::string_view doc) {
    using Field = std::decay_t<decltype(field)>;
    const std::string key = prefix.empty() ? std::string(name) : prefix + "." + std::string(name);
    if constexpr (is_vector_field<Field>) {
      out.push_back({key, list_text(field), on_resume, std::string(doc)});
    } else if constexpr (is_scalar_field<Field> || is_optional_field<Field>) {
      out.push_back({key, canonical_text(field), on_resume, std::string(doc)});
    } else {
      flatten_into(out, key, field);
    }
  });
}
}  // namespace detail

// Keys in the order of visit(). By value: visit() needs a mutable struct.
template <class T>
std::vector<FlatKey> flatten_config(T config) {
  std::vector<FlatKey> out;
  detail::flatten_into(out, "", config);
  return out;
}

// XXH3-128 of "key=value\n" lines: equal configurations have equal hashes, whatever file or override they
// came from.
std::string config_hash(std::span<const FlatKey> keys);

struct ConfigChange {
  std::string key;
  std::string old_value, new_value;  // canonical text; an empty old_value: the older Hearth had no such key
  OnResume on_resume = OnResume::Frozen;
  bool operator==(const ConfigChange&) const = default;
};

// What differs, in the order of `now`, with the class that `now` gives the key. `before` needs keys and
// values only. A key that only `before` has (a newer Hearth dropped it) is reported last as MayChange with an
// empty new_value; a key that only `now` has is reported as MayChange.
std::vector<ConfigChange> resume_diff(std::span<const FlatKey> before, std::span<const FlatKey> now);

}  // namespace hearth
