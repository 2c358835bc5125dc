// Training of byte-level BPE (Sennrich et al. 2016, over bytes as in Radford et al. 2019). Deterministic: the
// result is a function of the multiset of pre-tokens and the options, whatever the number of threads.
//
// Text is cut by the expression of Qwen2 (that of Llama-3 with every digit alone). Ids: the special tokens,
// the 256 bytes by the code point of their character, then one token per merge. The next merge is the most
// frequent pair; of equally frequent ones that with the smaller left id, then the smaller right id (as
// Hugging Face `tokenizers` does).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "data/tokenizer/pre_tokenizer.h"
#include "data/tokenizer/tokenizer.h"

namespace hearth {

// How often each pre-token occurs. One instance per thread.
class WordCounts {
 public:
  WordCounts();

  // Invalid UTF-8 becomes U+FFFD. Pre-tokens longer than kMaxWordBytes are counted in parts, at characters.
  void add_text(std::string_view text);

  // Adds all of `other`. When more than `max_words` distinct ones are held afterwards, the rarest are
  // forgotten: all that occurred once, then twice, and so on; so memory is bounded and the result depends on
  // the order of merging.
  void merge(const WordCounts& other, int64_t max_words);

  const std::unordered_map<std::string, int64_t>& counts() const { return counts_; }

  static constexpr size_t kMaxWordBytes = 256;

 private:
  void add_word(std::string_view word);
  std::unordered_map<std::string, int64_t> counts_;
  PreTokenizer pre_tokenizer_;
  RegexContext regex_;
};

struct BpeTrainingOptions {
  int64_t vocab_size = 0;  // with special tokens and bytes
  std::vector<std::string> special_tokens{"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  int64_t min_frequency = 2;  // rarer pairs are not merged
};

// Byte strings of the merged pairs, in order.
using LearnedMerges = std::vector<std::pair<std::string, std::string>>;

// `progress` (may be empty) hears (merges done, merges wanted) now and then. Error{Usage} for a vocabulary
// that has no room for bytes and special tokens. Fewer merges come back when pairs run out.
LearnedMerges learn_merges(const WordCounts& words, const BpeTrainingOptions& options,
                           const std::function<void(int64_t, int64_t)>& progress = {});

// tokenizer.json and tokenizer_config.json: end of text is the first special token, and the chat template is
// ChatML.
TokenizerFiles trained_tokenizer_files(const LearnedMerges& merges, const BpeTrainingOptions& options);

}  // namespace hearth
