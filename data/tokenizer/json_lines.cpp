#include "data/tokenizer/json_lines.h"

#include <fmt/format.h>

#include <istream>
#include <nlohmann/json.hpp>
#include <ostream>

#include "base/error.h"
#include "data/tokenizer/unicode.h"

namespace hearth {

namespace {

constexpr size_t kShown = 60;  // bytes of a bad line in the message

std::string text_of_line(const std::string& line, int64_t number) {
  const auto value = nlohmann::json::parse(
      unicode::is_valid_utf8(line) ? line : unicode::replace_invalid_utf8(line), nullptr, false);
  HEARTH_CHECK(value.is_string(), BadInput, "stdin:{}: expected one JSON string, got {:?}", number,
               line.substr(0, kShown));
  return value.get<std::string>();
}

std::vector<int32_t> ids_of_line(const std::string& line, int64_t number, int64_t vocab_size) {
  const auto value = nlohmann::json::parse(line, nullptr, false);
  HEARTH_CHECK(value.is_array(), BadInput, "stdin:{}: expected one JSON array of ids, got {:?}", number,
               line.substr(0, kShown));
  std::vector<int32_t> ids;
  ids.reserve(value.size());
  for (const auto& id : value) {
    HEARTH_CHECK(id.is_number_unsigned() && id.get<uint64_t>() < static_cast<uint64_t>(vocab_size), BadInput,
                 "stdin:{}: {} is not an id of this tokenizer (0 to {})", number, id.dump(), vocab_size - 1);
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

void finish(std::ostream& out) {
  out.flush();
  HEARTH_CHECK(out.good(), Io, "standard output: write failed");
}

}  // namespace

void encode_lines(const Tokenizer& tokenizer, SpecialTokens special, std::istream& in, std::ostream& out) {
  std::string line;
  fmt::memory_buffer text;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    text.clear();
    fmt::format_to(std::back_inserter(text), "[{}]\n",
                   fmt::join(tokenizer.encode(text_of_line(line, number), special), ","));
    out.write(text.data(), static_cast<std::streamsize>(text.size()));
  }
  finish(out);
}

void decode_lines(const Tokenizer& tokenizer, DecodeSpecial special, std::istream& in, std::ostream& out) {
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    const auto ids = ids_of_line(line, number, tokenizer.vocab_size());
    out << nlohmann::json(tokenizer.decode(ids, special)).dump() << '\n';
  }
  finish(out);
}

}  // namespace hearth
