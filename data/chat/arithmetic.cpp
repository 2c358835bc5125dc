#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "data/chat/operations.h"

namespace hearth::chat {

namespace {

[[noreturn]] void unsupported(std::string_view symbol, const Value& a, const Value& b) {
  require_defined(a);
  require_defined(b);
  fault("unsupported operand type(s) for {}: '{}' and '{}'", symbol, a.type_name(), b.type_name());
}

[[noreturn]] void too_large() {
  fault("integers of more than 127 bits are not supported");
}

bool integers(const Value& a, const Value& b) {
  return a.is_integral() && b.is_integral();
}

void require_numbers(std::string_view symbol, const Value& a, const Value& b) {
  if (!a.is_number() || !b.is_number()) unsupported(symbol, a, b);
}

Value repeated(const Value& sequence, const Value& count, Budget& budget) {
  require_defined(count);
  if (!count.is_integral()) fault("can't multiply sequence by non-int of type '{}'", count.type_name());
  if (sequence.is_text()) return text_like(sequence, repeat(sequence.text().bytes, count.integer(), budget));
  const auto& items = sequence.sequence()->items;
  std::vector<Value> out;
  if (items.empty()) return make_sequence(sequence.sequence()->kind, {});
  for (Int i = 0; i < count.integer(); ++i) {
    budget.spend(items.size());
    out.insert(out.end(), items.begin(), items.end());
  }
  return make_sequence(sequence.sequence()->kind, std::move(out));
}

bool repeatable(const Value& value) {
  return value.is_text() || value.is(SequenceKind::List) || value.is(SequenceKind::Tuple);
}

// Text joined to markup is escaped, whichever side it stands on.
Value joined_markup(const Value& a, const Value& b, Budget& budget) {
  const auto safe = [&](const Value& v) {
    return v.is_markup() ? v.text().bytes : escape_html(v.text().bytes, budget);
  };
  std::string out = safe(a) + safe(b);
  budget.spend_text(out.size());
  return Value::markup(std::move(out));
}

Value floored(const Value& a, const Value& b, bool quotient) {
  const char* const symbol = quotient ? "//" : "%";
  require_numbers(symbol, a, b);
  if (integers(a, b)) {
    const Int x = a.integer(), y = b.integer();
    if (y == 0) fault("integer {}", quotient ? "division or modulo by zero" : "modulo by zero");
    if (y == -1) return quotient ? negative(a) : Value(Int{0});  // the lowest integer / -1 has no value
    const Int rest = x % y;
    const bool down = rest != 0 && (rest < 0) != (y < 0);
    return quotient ? Value(x / y - (down ? 1 : 0)) : Value(rest + (down ? y : 0));
  }
  const double x = a.number(), y = b.number();
  if (y == 0) fault("{}", quotient ? "float floor division by zero" : "float modulo");
  double rest = std::fmod(x, y);
  double whole = (x - rest) / y;
  if (rest != 0 && (rest < 0) != (y < 0)) {
    rest += y;
    whole -= 1;
  }
  if (!quotient) return Value(rest == 0 ? std::copysign(0.0, y) : rest);
  if (whole == 0) return Value(std::copysign(0.0, x / y));
  const double floor = std::floor(whole);
  return Value(whole - floor > 0.5 ? floor + 1 : floor);
}

}  // namespace

Value add(const Value& a, const Value& b, Budget& budget) {
  if (a.is_text() && b.is_text()) {
    if (a.is_markup() || b.is_markup()) return joined_markup(a, b, budget);
    budget.spend_text(a.text().bytes.size() + b.text().bytes.size());
    return Value(a.text().bytes + b.text().bytes);
  }
  if (a.is_number() && b.is_number()) {
    if (!integers(a, b)) return Value(a.number() + b.number());
    Int out = 0;
    if (__builtin_add_overflow(a.integer(), b.integer(), &out)) too_large();
    return Value(out);
  }
  const bool lists = a.is(SequenceKind::List) && b.is(SequenceKind::List);
  if (lists || (a.is(SequenceKind::Tuple) && b.is(SequenceKind::Tuple))) {
    std::vector<Value> items = iterate(a, budget);
    const std::vector<Value> more = iterate(b, budget);
    items.insert(items.end(), more.begin(), more.end());
    return make_sequence(a.sequence()->kind, std::move(items));
  }
  require_defined(a);
  require_defined(b);
  if (repeatable(a)) fault("can only concatenate {0} (not \"{1}\") to {0}", a.type_name(), b.type_name());
  unsupported("+", a, b);
}

Value subtract(const Value& a, const Value& b) {
  require_numbers("-", a, b);
  if (!integers(a, b)) return Value(a.number() - b.number());
  Int out = 0;
  if (__builtin_sub_overflow(a.integer(), b.integer(), &out)) too_large();
  return Value(out);
}

Value multiply(const Value& a, const Value& b, Budget& budget) {
  if (repeatable(a)) return repeated(a, b, budget);
  if (repeatable(b)) return repeated(b, a, budget);
  require_numbers("*", a, b);
  if (!integers(a, b)) return Value(a.number() * b.number());
  Int out = 0;
  if (__builtin_mul_overflow(a.integer(), b.integer(), &out)) too_large();
  return Value(out);
}

Value divide(const Value& a, const Value& b) {
  require_numbers("/", a, b);
  if (b.number() == 0) fault("{}", integers(a, b) ? "division by zero" : "float division by zero");
  return Value(a.number() / b.number());
}

Value floor_divide(const Value& a, const Value& b) {
  return floored(a, b, true);
}

Value modulo(const Value& a, const Value& b, Budget& budget) {
  if (!a.is_text()) return floored(a, b, false);
  if (a.is_markup()) fault("formatting of markup with '%' is not supported");
  return Value(format_percent(a.text().bytes, b, budget));
}

Value power(const Value& a, const Value& b) {
  require_numbers("** or pow()", a, b);
  if (integers(a, b) && b.integer() >= 0) {
    const Int base = a.integer(), exponent = b.integer();
    if (base == 0 || base == 1) return Value(exponent == 0 ? Int{1} : base);
    if (base == -1) return Value(exponent % 2 == 0 ? Int{1} : Int{-1});
    Int out = 1;
    for (Int i = 0; i < exponent; ++i)  // at most 127 times, as |base| is at least 2
      if (__builtin_mul_overflow(out, base, &out)) too_large();
    return Value(out);
  }
  const double base = a.number(), exponent = b.number();
  if (base == 0 && exponent < 0) fault("0.0 cannot be raised to a negative power");
  if (base < 0 && std::floor(exponent) != exponent) fault("a root of a negative number is not supported");
  const double out = std::pow(base, exponent);
  if (std::isinf(out) && std::isfinite(base) && std::isfinite(exponent))
    fault("Numerical result out of range");
  return Value(out);
}

Value negative(const Value& a) {
  require_defined(a);
  if (!a.is_number()) fault("bad operand type for unary -: '{}'", a.type_name());
  if (a.is_float()) return Value(-a.number());
  Int out = 0;
  if (__builtin_sub_overflow(Int{0}, a.integer(), &out)) too_large();
  return Value(out);
}

Value positive(const Value& a) {
  require_defined(a);
  if (!a.is_number()) fault("bad operand type for unary +: '{}'", a.type_name());
  return a.is_float() ? a : Value(a.integer());
}

bool contains(const Value& container, const Value& item, Budget& budget) {
  budget.spend(item.weight());
  if (container.is_text()) {
    if (!item.is_text()) fault("'in <string>' requires string as left operand, not {}", item.type_name());
    budget.spend_text(container.text().bytes.size());
    return find_text(container.text().bytes, item.text().bytes) != std::string::npos;
  }
  if (container.is_dict()) return container.dict().find(item) != nullptr;
  if (!iterable(container)) fault("argument of type '{}' is not iterable", container.type_name());
  if (container.is_undefined()) return false;
  budget.spend(item.depth() > 0 || item.is_text() ? container.weight() : container.sequence()->items.size());
  if (container.is(SequenceKind::Generator)) {  // reads on up to the item
    Sequence& generator = *container.sequence();
    while (generator.taken < generator.items.size())
      if (equal(generator.items[generator.taken++], item)) return true;
    return false;
  }
  const auto& items = container.sequence()->items;
  return std::any_of(items.begin(), items.end(), [&](const Value& other) { return equal(other, item); });
}

Int float_to_integer(double value) {
  if (std::isnan(value)) fault("cannot convert float NaN to integer");
  if (std::isinf(value)) fault("cannot convert float infinity to integer");
  if (std::fabs(value) >= 0x1p126) too_large();
  return static_cast<Int>(value);
}

Int as_integer(const Value& value) {
  require_defined(value);
  if (!value.is_integral()) fault("'{}' object cannot be interpreted as an integer", value.type_name());
  if (value.integer() > INT64_MAX || value.integer() < INT64_MIN)
    fault("cannot fit 'int' into an index-sized integer");
  return value.integer();
}

double round_half_even(double value, int64_t digits) {
  if (!std::isfinite(value) || digits > 300) return value;
  if (digits < -300) return std::copysign(0.0, value);
  if (digits < 0) {
    const double scale = std::pow(10.0, static_cast<double>(-digits));
    return std::nearbyint(value / scale) * scale;
  }
  char buffer[700];  // the C library rounds the exact binary value, ties to even, as Python does
  std::snprintf(buffer, sizeof buffer, "%.*f", static_cast<int>(digits), value);
  return std::strtod(buffer, nullptr);
}

}  // namespace hearth::chat
