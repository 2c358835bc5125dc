// Added tokens of tokenizer.json: pieces of text that become one id before BPE sees them (special tokens
// among them). Immutable after construction, thread-safe.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer/function_ref.h"

namespace hearth {

struct AddedToken {
  int32_t id;
  std::string content;
  bool single_word, lstrip, rstrip, normalized, special;
};

// The `added_tokens` list; checks types, not ids.
std::vector<AddedToken> read_added_tokens(const nlohmann::json& list);

// Finds tokens in text: at each place the longest one, from left to right.
class AddedTokenMatcher {
 public:
  struct Pattern {
    std::string text;  // what is looked for: the content, normalized where the token says so
    AddedToken token;
  };
  AddedTokenMatcher() = default;
  explicit AddedTokenMatcher(std::vector<Pattern> patterns);

  // Hands out, in order, the text between tokens (id -1) and the tokens. lstrip and rstrip tokens take the
  // white space beside them along. `text` is valid UTF-8.
  void split(std::string_view text, FunctionRef<void(std::string_view part, int32_t id)> out) const;

 private:
  struct Node {
    std::vector<std::pair<unsigned char, int32_t>> children;  // sorted by byte
    int32_t pattern = -1;
  };
  // Index of the longest pattern that starts at text[pos], or -1.
  int32_t longest_at(std::string_view text, size_t pos) const;
  int32_t child(int32_t node, unsigned char byte) const;

  std::vector<Pattern> patterns_;
  std::vector<Node> nodes_;
  bool starts_[256] = {};  // bytes that a pattern begins with
};

}  // namespace hearth
