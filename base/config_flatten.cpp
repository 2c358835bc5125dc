#include "base/config_flatten.h"

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "base/hash.h"

namespace hearth {

std::string canonical_text(bool value) {
  return value ? "true" : "false";
}

std::string canonical_text(int64_t value) {
  return fmt::format("{}", value);
}

std::string canonical_text(double value) {
  if (std::isnan(value)) return ".nan";
  if (std::isinf(value)) return value > 0 ? ".inf" : "-.inf";
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".e") == std::string::npos) return text + ".0";
  // YAML 1.1 readers take a float in exponent form only with a dot: 3e-05 would be a string to them.
  const size_t exponent = text.find('e');
  if (text.find('.') == std::string::npos) text.insert(exponent, ".0");
  return text;
}

std::string canonical_text(const std::string& value) {
  return nlohmann::json(value).dump(-1, ' ', /*ensure_ascii=*/false,
                                    nlohmann::json::error_handler_t::replace);
}

std::string config_hash(std::span<const FlatKey> keys) {
  Xxh3Stream stream;
  for (const auto& key : keys) stream.update(key.key + "=" + key.value + "\n");
  return stream.hex128();
}

std::vector<ConfigChange> resume_diff(std::span<const FlatKey> before, std::span<const FlatKey> now) {
  std::map<std::string_view, std::string_view> old_values;
  for (const auto& key : before) old_values.emplace(key.key, key.value);
  std::vector<ConfigChange> changes;
  for (const auto& key : now) {
    const auto found = old_values.find(key.key);
    if (found == old_values.end()) {
      changes.push_back({key.key, "", key.value, OnResume::MayChange});
      continue;
    }
    if (found->second != key.value)
      changes.push_back({key.key, std::string(found->second), key.value, key.on_resume});
    old_values.erase(found);
  }
  for (const auto& key : before)
    if (old_values.contains(key.key)) changes.push_back({key.key, key.value, "", OnResume::MayChange});
  return changes;
}

}  // namespace hearth
