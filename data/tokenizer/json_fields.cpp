#include "data/tokenizer/json_fields.h"

#include "base/strict_json.h"

namespace hearth::json_fields {

namespace {

template <class Check>
const Json& typed(const Json& value, std::string_view key, std::string_view where, const char* wanted,
                  Check check) {
  HEARTH_CHECK(check(value), BadInput, "{}: {} must be {}, got {}", where, key, wanted, value.type_name());
  return value;
}

}  // namespace

Json parse(std::string_view text, std::string_view origin) {
  return parse_json_strict(text, origin);
}

const Json* find(const Json& object, std::string_view key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(std::string(key));
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

const Json& member(const Json& object, std::string_view key, std::string_view where) {
  const Json* found = find(object, key);
  HEARTH_CHECK(found != nullptr, BadInput, "{}: {} is missing", where, key);
  return *found;
}

std::string string(const Json& object, std::string_view key, std::string_view where) {
  return typed(member(object, key, where), key, where, "a string",
               [](const Json& j) { return j.is_string(); })
      .get<std::string>();
}

std::string string_or(const Json& object, std::string_view key, std::string_view fallback,
                      std::string_view where) {
  return find(object, key) == nullptr ? std::string(fallback) : string(object, key, where);
}

int64_t integer(const Json& object, std::string_view key, std::string_view where) {
  const auto in_range = [](const Json& j) {
    return j.is_number_integer() && (!j.is_number_unsigned() || j.get<uint64_t>() <= uint64_t{INT64_MAX});
  };
  return typed(member(object, key, where), key, where, "an integer", in_range).get<int64_t>();
}

int64_t integer_or(const Json& object, std::string_view key, int64_t fallback, std::string_view where) {
  return find(object, key) == nullptr ? fallback : integer(object, key, where);
}

bool boolean_or(const Json& object, std::string_view key, bool fallback, std::string_view where) {
  const Json* found = find(object, key);
  if (found == nullptr) return fallback;
  return typed(*found, key, where, "true or false", [](const Json& j) { return j.is_boolean(); }).get<bool>();
}

const Json& array(const Json& object, std::string_view key, std::string_view where) {
  return typed(member(object, key, where), key, where, "a list", [](const Json& j) { return j.is_array(); });
}

}  // namespace hearth::json_fields
