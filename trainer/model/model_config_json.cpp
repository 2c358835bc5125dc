#include "trainer/model/model_config_json.h"

#include <nlohmann/json.hpp>
#include <set>
#include <type_traits>

#include "base/error.h"

namespace hearth {
namespace {

struct Writer {
  nlohmann::json& out;
  template <class T>
  void operator()(const char* key, T& value, OnResume, const char*) {
    if constexpr (std::is_class_v<T> && !std::is_same_v<T, std::string>) {
      nlohmann::json section = nlohmann::json::object();
      value.visit(Writer{section});
      out[key] = std::move(section);
    } else {
      out[key] = value;
    }
  }
};

bool assign(const nlohmann::json& from, std::string& to) {
  if (from.is_string()) to = from.get<std::string>();
  return from.is_string();
}
bool assign(const nlohmann::json& from, bool& to) {
  if (from.is_boolean()) to = from.get<bool>();
  return from.is_boolean();
}
bool assign(const nlohmann::json& from, double& to) {
  if (from.is_number()) to = from.get<double>();
  return from.is_number();
}
bool assign(const nlohmann::json& from, int64_t& to) {
  const bool fits =
      from.is_number_integer() && !(from.is_number_unsigned() && from.get<uint64_t>() > uint64_t{INT64_MAX});
  if (fits) to = from.get<int64_t>();
  return fits;
}

struct Reader {
  const nlohmann::json& in;
  ConfigErrors& errors;
  std::set<std::string>& known;
  template <class T>
  void operator()(const char* key, T& value, OnResume, const char*) {
    known.insert(key);
    const auto found = in.find(key);
    if (found == in.end()) return;
    if constexpr (std::is_class_v<T> && !std::is_same_v<T, std::string>) {
      const ConfigErrors::Scope scope(errors, key);
      read(*found, value, errors);
    } else if (!assign(*found, value)) {
      errors.add(key, "has the wrong type: " + found->dump().substr(0, 60));
    }
  }

  template <class T>
  static void read(const nlohmann::json& object, T& value, ConfigErrors& errors) {
    if (!object.is_object()) return errors.add("", "must be an object, got " + object.dump().substr(0, 60));
    std::set<std::string> keys;
    value.visit(Reader{object, errors, keys});
    for (const auto& item : object.items())
      if (!keys.contains(item.key())) errors.add(item.key(), "is not a key of this section");
  }
};

// Bounds that keep every product of two extents, and the list of parameters, far from overflow: what comes
// from a file is not trusted. The largest published models are five orders of magnitude below.
void check_plausible(const ModelConfig& c, ConfigErrors& errors) {
  constexpr int64_t kMaxExtent = int64_t{1} << 31, kMaxLayers = 100'000, kMaxHeads = 1 << 20;
  const auto limit = [&](int64_t value, int64_t most, std::string_view key) {
    errors.require(value <= most, key, "must be at most {}, got {}", most, value);
  };
  limit(c.vocab_size, kMaxExtent, "vocab_size");
  limit(c.hidden_size, kMaxExtent, "hidden_size");
  limit(c.intermediate_size, kMaxExtent, "intermediate_size");
  limit(c.num_hidden_layers, kMaxLayers, "num_hidden_layers");
  limit(c.num_attention_heads, kMaxHeads, "num_attention_heads");
  limit(c.num_key_value_heads, kMaxHeads, "num_key_value_heads");
  limit(c.head_dim, kMaxHeads, "head_dim");
}

void throw_if_any(const ConfigErrors& errors, std::string_view origin) {
  if (errors.empty()) return;
  std::string list;
  for (const auto& entry : errors.entries()) list += fmt::format("\n  {}: {}", entry.key, entry.message);
  fail(ErrorKind::BadInput, "{}: the model configuration is not usable:{}", origin, list);
}

}  // namespace

nlohmann::json model_config_to_json(const ModelConfig& config) {
  ModelConfig copy = config;  // visit() takes fields by reference
  nlohmann::json out = nlohmann::json::object();
  copy.visit(Writer{out});
  return out;
}

ModelConfig model_config_from_json(const nlohmann::json& json, std::string_view origin) {
  ModelConfig config;
  ConfigErrors errors;
  Reader::read(json, config, errors);
  throw_if_any(errors, origin);
  require_valid(config, origin);
  return config;
}

void require_valid(const ModelConfig& config, std::string_view origin) {
  ConfigErrors errors;
  config.validate(errors);
  check_plausible(config, errors);
  throw_if_any(errors, origin);
}

}  // namespace hearth
