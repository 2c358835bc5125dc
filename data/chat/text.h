// Python's operations on str, for UTF-8 text that is valid: indices and lengths count code points.
// Pure functions. Their results are bounded by their inputs; where not, they take the budget.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/chat/value.h"

namespace hearth::chat {

std::vector<std::string_view> characters(std::string_view text);
size_t count_characters(const Text& text);

// Python's str.isspace for one character.
bool is_space(char32_t c);
// Python's str.isprintable for one character; decides what repr escapes.
bool is_printable(char32_t c);

// A Python slice: which indices of a sequence of `size` items it takes, in order. Fault for step 0.
struct Slice {
  std::optional<Int> start, stop, step;
};
struct SliceRange {
  int64_t first = 0, step = 1, count = 0;
};
SliceRange resolve(const Slice& slice, size_t size);
// An index of Python, negative ones from the end; nothing where it is outside.
std::optional<size_t> resolve_index(Int index, size_t size);

std::string slice_text(const Text& text, const Slice& slice);
std::optional<std::string> character_at(const Text& text, Int index);

enum class Side { Left, Right, Both };
// Without `chars`: white space.
std::string_view strip(std::string_view text, std::optional<std::string_view> chars, Side side);
// Where `sought` begins, from `pos` on; npos if nowhere. Linear time, which std::string::find does not
// promise.
size_t find_text(std::string_view text, std::string_view sought, size_t pos = 0);
// Without `separator`: at runs of white space. `limit` < 0: no limit.
std::vector<std::string> split(std::string_view text, std::optional<std::string_view> separator,
                               int64_t limit);
std::vector<std::string> split_right(std::string_view text, std::optional<std::string_view> separator,
                                     int64_t limit);
enum class LineEnds { Keep, Drop };
std::vector<std::string> split_lines(std::string_view text, LineEnds ends);

std::string replace(std::string_view text, std::string_view from, std::string_view to, int64_t limit,
                    Budget& budget);
std::string repeat(std::string_view text, Int count, Budget& budget);
std::string join(const std::vector<std::string>& parts, std::string_view separator, Budget& budget);

std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string capitalize(std::string_view text);  // the first character as a title, the rest lower
std::string title(std::string_view text);
std::string swap_case(std::string_view text);
enum class Case { Upper, Lower };
// Python's isupper, islower: at least one cased character, and all of them of this case.
bool is_case(std::string_view text, Case which);

// Python's isalpha, isdecimal, isdigit, isnumeric of one character.
enum class CharacterClass { Alphabetic, Decimal, Digit, Numeric };
bool is_class(char32_t c, CharacterClass which);

// What markupsafe.escape does with < > & ' and the double quote.
std::string escape_html(std::string_view text, Budget& budget);

}  // namespace hearth::chat
