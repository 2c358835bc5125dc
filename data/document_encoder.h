// One unit of a corpus -> tokenised documents in a RunBuilder. What a document is, which split and which
// place in the shuffle it gets, is decided here, as a pure function of the unit. Thread-safe: one instance
// serves all workers.
//
// Every document is encoded whole, with what the tokenizer's post-processor adds (a BOS where it has one),
// and an eos is appended unless it ends in one already. Ids of users' token files are taken as they are: a
// document ends after each eos and, for [N, L], after each row; nothing is added. Documents without text, or
// of an eos alone, are left out. The split depends on the document's content alone, so copies of a text never
// lie on both sides. Lines that hold conversations become masked documents
// (data/chat/conversation_encoder.h), a pair of preferences one entry of two documents; what is longer than a
// bin is cut or left out here.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/chat/conversation_encoder.h"
#include "data/corpus.h"
#include "data/run_file.h"
#include "data/tokenizer/tokenizer.h"

namespace hearth {

enum class BadLines { Stop, Skip };
enum class LongDocuments { Cut, Drop };  // what is longer than a bin

// How lines that hold conversations are read.
struct ConversationInput {
  RecordFormat format = RecordFormat::Messages;
  RecordFields fields;
  const ConversationEncoder* encoder = nullptr;
  int64_t pack_length = 0;  // 0: documents may have any length
  LongDocuments long_documents = LongDocuments::Cut;
};

struct EncoderOptions {
  uint64_t seed = 0;
  double validation_fraction = 0;
  BadLines bad_lines = BadLines::Stop;
  TextDocuments text_documents = TextDocuments::WholeFile;
  std::optional<ConversationInput> conversations;  // lines are conversations
};

class DocumentEncoder {
 public:
  // Keeps references to both; `sources` must have their digests.
  DocumentEncoder(const Tokenizer& tokenizer, const std::vector<CorpusSource>& sources,
                  const EncoderOptions& options);
  // Throws Error{BadInput} with file:line for a malformed line or a missing field, unless they are skipped,
  // and for ids beyond the vocabulary.
  RunBuilder encode(const CorpusUnit& unit) const;

 private:
  void encode_text(const CorpusPiece& piece, RunBuilder& out) const;
  void encode_lines(const CorpusPiece& piece, RunBuilder& out) const;
  void encode_tokens(const CorpusPiece& piece, RunBuilder& out) const;
  void add_text(const CorpusPiece& piece, int64_t ordinal, std::string_view text, RunBuilder& out) const;
  // The reason in `problem` where the line is not a record that can be encoded.
  void add_record(const CorpusPiece& piece, int64_t ordinal, std::string_view line, std::string& problem,
                  RunBuilder& out) const;
  void add(const CorpusPiece& piece, int64_t ordinal, uint64_t content_hash, const MaskedDocument& document,
           int64_t num_second, RunBuilder& out) const;

  const Tokenizer& tokenizer_;
  const std::vector<CorpusSource>& sources_;
  EncoderOptions options_;
  std::optional<int32_t> eos_id_;
  std::vector<uint64_t> source_keys_;
};

}  // namespace hearth
