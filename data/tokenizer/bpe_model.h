// The `model` of tokenizer.json, type BPE: vocabulary, merges, and from a piece of text to ids.
// Immutable after construction; thread-safe with one BpeScratch per thread.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/tokenizer/bpe_merge.h"
#include "data/tokenizer/pre_tokenizer.h"
#include "data/tokenizer/word_cache.h"

namespace hearth {

struct BpeScratch {
  Merger merger;
  WordCache cache;
  std::vector<int32_t> symbols;
};

class BpeModel {
 public:
  explicit BpeModel(const nlohmann::json& spec);
  BpeModel(const BpeModel&) = delete;  // ids_ refers to tokens_
  BpeModel& operator=(const BpeModel&) = delete;

  // RawBytes if the vocabulary can be addressed by raw bytes: it has all 256 characters of the byte alphabet,
  // and no prefix or suffix is glued to them.
  PieceForm preferred_form() const { return preferred_form_; }

  // Says how pieces will arrive; called once, before any encode.
  void set_form(PieceForm form);

  void encode(std::string_view piece, BpeScratch& scratch, std::vector<int32_t>& out) const;

  std::optional<int32_t> token_to_id(std::string_view token) const;
  const std::vector<std::string>& tokens() const { return tokens_; }  // by id; holes are empty
  size_t vocab_size() const { return ids_.size(); }                   // without holes
  bool has_token(int32_t id) const;

 private:
  void read_vocab(const nlohmann::json& spec);
  void read_merges(const nlohmann::json& spec);
  int32_t unk_id(const nlohmann::json& spec) const;
  void index_characters();
  void index_raw_bytes();
  void find_safe_cut(const std::vector<Merge>& merges);
  void encode_word(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& out) const;
  std::optional<int32_t> whole_word(std::string_view word) const;
  void append_symbols(std::string_view word, std::vector<int32_t>& symbols) const;
  int32_t character_id(std::string_view word, size_t pos, size_t length) const;
  bool append_byte_fallback(std::string_view text, std::vector<int32_t>& symbols) const;

  std::vector<std::string> tokens_;
  std::unordered_map<std::string_view, int32_t> ids_;
  MergeTable merges_;
  std::string prefix_, suffix_;  // continuing_subword_prefix, end_of_word_suffix
  int32_t unk_id_ = -1;          // -1: none
  bool fuse_unk_ = false, byte_fallback_ = false, ignore_merges_ = false;
  PieceForm preferred_form_ = PieceForm::Text, form_ = PieceForm::Text;
  std::vector<int32_t> basic_plane_ids_;              // of single characters below U+10000; -1: none
  std::array<int32_t, 256> byte_ids_{};               // of the byte alphabet's characters
  std::array<int32_t, 256> fallback_ids_{};           // of <0x00> ... <0xFF>
  std::unordered_map<std::string, int32_t> raw_ids_;  // token as raw bytes -> id, for ignore_merges
  bool cut_at_underline_ = false;  // no merge reaches over the start of a run of U+2581, so words end there
};

}  // namespace hearth
