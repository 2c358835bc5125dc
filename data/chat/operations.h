// Operators and look-ups on values, with Python's meaning. What Python refuses is a Fault in Python's words.
#pragma once

#include <string>
#include <vector>

#include "data/chat/format.h"
#include "data/chat/objects.h"
#include "data/chat/text.h"
#include "data/chat/value.h"

namespace hearth::chat {

Value add(const Value& a, const Value& b, Budget& budget);
Value subtract(const Value& a, const Value& b);
Value multiply(const Value& a, const Value& b, Budget& budget);
Value divide(const Value& a, const Value& b);
Value floor_divide(const Value& a, const Value& b);
Value modulo(const Value& a, const Value& b, Budget& budget);  // or formatting, where `a` is a text
Value power(const Value& a, const Value& b);
Value negative(const Value& a);
Value positive(const Value& a);
bool contains(const Value& container, const Value& item, Budget& budget);
Int float_to_integer(double value);  // truncates; Fault for what is not finite or passes 126 bits
// An argument that Python takes as an index; Fault for other types.
Int as_integer(const Value& value);
// Python's round(value, digits) for a float.
double round_half_even(double value, int64_t digits);

// value.name and value[key] as jinja2 looks them up in its sandbox: undefined where there is nothing. Methods
// come before keys for the first, after them for the second. Undefined values are a Fault.
Value get_attribute(const Value& value, const std::string& name);
Value get_item(const Value& value, const Value& key);
Value get_slice(const Value& value, const Slice& slice, Budget& budget);

// A method of a text, list or dict, or of a loop or cycler. Fault for those that are not supported.
Value call_method(const Method& method, const Arguments& arguments, Budget& budget);

// A text like `model`: markup if that is markup.
inline Value text_like(const Value& model, std::string text) {
  return model.is_markup() ? Value::markup(std::move(text)) : Value(std::move(text));
}

}  // namespace hearth::chat
