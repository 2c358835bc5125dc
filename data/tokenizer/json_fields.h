// Typed access to JSON from files, with errors that name the place. All functions throw Error{BadInput}.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/error.h"

namespace hearth::json_fields {

using Json = nlohmann::json;

// Parses a whole document; `origin` names the file in messages.
Json parse(std::string_view text, std::string_view origin);

// The member `key` of an object; an absent one is an error.
const Json& member(const Json& object, std::string_view key, std::string_view where);

// nullptr where the key is absent or null.
const Json* find(const Json& object, std::string_view key);

std::string string(const Json& object, std::string_view key, std::string_view where);
std::string string_or(const Json& object, std::string_view key, std::string_view fallback,
                      std::string_view where);
int64_t integer(const Json& object, std::string_view key, std::string_view where);
int64_t integer_or(const Json& object, std::string_view key, int64_t fallback, std::string_view where);
bool boolean_or(const Json& object, std::string_view key, bool fallback, std::string_view where);
const Json& array(const Json& object, std::string_view key, std::string_view where);

}  // namespace hearth::json_fields
