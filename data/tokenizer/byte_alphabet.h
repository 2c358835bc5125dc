// The 256 printable characters that byte-level BPE writes bytes as (Radford et al. 2019, GPT-2's encoder): a
// printable Latin-1 character stands for its own byte, the 68 others for U+0100 and up. Pure, thread-safe.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace hearth {

struct ByteAlphabet {
  std::array<std::string, 256> text;   // byte -> UTF-8 of its character
  std::array<int16_t, 0x144> byte_of;  // character -> byte, -1 if it stands for none
};
const ByteAlphabet& byte_alphabet();

std::string bytes_to_alphabet(std::string_view bytes);

// nullopt if a character is not in the alphabet; `valid` must be valid UTF-8.
std::optional<std::string> alphabet_to_bytes(std::string_view valid);

}  // namespace hearth
