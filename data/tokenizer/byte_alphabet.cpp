#include "data/tokenizer/byte_alphabet.h"

#include "data/tokenizer/unicode.h"

namespace hearth {

const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet alphabet = [] {
    ByteAlphabet a;
    a.byte_of.fill(-1);
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
      const char32_t character = printable ? byte : next++;
      unicode::append_utf8(a.text[byte], character);
      a.byte_of[character] = static_cast<int16_t>(byte);
    }
    return a;
  }();
  return alphabet;
}

std::string bytes_to_alphabet(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() + bytes.size() / 4);
  for (const char c : bytes) out += byte_alphabet().text[static_cast<unsigned char>(c)];
  return out;
}

std::optional<std::string> alphabet_to_bytes(std::string_view valid) {
  const ByteAlphabet& alphabet = byte_alphabet();
  std::string out;
  for (size_t pos = 0; pos < valid.size();) {
    const char32_t c = unicode::decode_at(valid, pos);
    pos += unicode::sequence_length(static_cast<unsigned char>(valid[pos]));
    if (c >= alphabet.byte_of.size() || alphabet.byte_of[c] < 0) return std::nullopt;
    out.push_back(static_cast<char>(static_cast<unsigned char>(alphabet.byte_of[c])));
  }
  return out;
}

}  // namespace hearth
