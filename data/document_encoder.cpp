#include "data/document_encoder.h"

#include <simdjson.h>

#include "base/error.h"
#include "base/hash.h"
#include "data/packing.h"
#include "data/permutation.h"

namespace hearth {
namespace {

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n\v\f") == std::string_view::npos;
}

// The line that begins at `at`, without its line end; moves `at` to the next line.
std::string_view next_line(std::string_view text, size_t& at) {
  const size_t end = std::min(text.find('\n', at), text.size());
  const std::string_view line = text.substr(at, end - at);
  at = end + 1;
  return line;
}

// The text of a JSON line; the reason in `problem` where there is none. Valid until the parser's next use.
std::string_view text_of(simdjson::dom::parser& parser, std::string_view line, const std::string& field,
                         std::string& problem) {
  simdjson::dom::element root;
  if (const auto error = parser.parse(line.data(), line.size()).get(root)) {
    problem = fmt::format("malformed JSON: {}", simdjson::error_message(error));
    return {};
  }
  simdjson::dom::object object;
  if (root.get(object)) {
    problem = "not a JSON object";
    return {};
  }
  simdjson::dom::element value;
  if (object.at_key(field).get(value)) {
    problem = fmt::format("field '{}' is missing (choose with --text-field)", field);
    return {};
  }
  std::string_view text;
  if (value.get(text)) problem = fmt::format("field '{}' is not a string", field);
  return text;
}

}  // namespace

DocumentEncoder::DocumentEncoder(const Tokenizer& tokenizer, const std::vector<CorpusSource>& sources,
                                 const EncoderOptions& options)
    : tokenizer_(tokenizer), sources_(sources), options_(options), eos_id_(tokenizer.eos_id()) {
  for (const auto& source : sources) {
    source_keys_.push_back(mix64(xxh3_64(source.digest + "\n" + source.selector) ^ mix64(options.seed + 1)));
  }
}

RunBuilder DocumentEncoder::encode(const CorpusUnit& unit) const {
  RunBuilder out;
  for (const auto& piece : unit.pieces) {
    switch (sources_[static_cast<size_t>(piece.source)].kind) {
      case SourceKind::Text:
        encode_text(piece, out);
        break;
      case SourceKind::JsonLines:
      case SourceKind::JsonArray:
        encode_lines(piece, out);
        break;
      case SourceKind::Tokens:
        encode_tokens(piece, out);
        break;
    }
  }
  return out;
}

void DocumentEncoder::encode_text(const CorpusPiece& piece, RunBuilder& out) const {
  if (options_.text_documents == TextDocuments::WholeFile)
    return add_text(piece, piece.ordinal, piece.text, out);
  const std::string_view text = piece.text;
  size_t begin = 0;  // of the current paragraph
  bool inside = false;
  for (size_t at = 0; at < text.size();) {
    const size_t line_begin = at;
    const bool blank = is_blank(next_line(text, at));
    if (!blank && !inside) begin = line_begin;
    if (blank && inside) {
      add_text(piece, piece.ordinal + static_cast<int64_t>(begin), text.substr(begin, line_begin - begin),
               out);
    }
    inside = !blank;
  }
  if (inside) add_text(piece, piece.ordinal + static_cast<int64_t>(begin), text.substr(begin), out);
}

void DocumentEncoder::encode_lines(const CorpusPiece& piece, RunBuilder& out) const {
  const CorpusSource& source = sources_[static_cast<size_t>(piece.source)];
  simdjson::dom::parser parser;
  int64_t line_number = piece.first_line;
  for (size_t at = 0; at < piece.text.size(); ++line_number) {
    const auto ordinal = piece.ordinal + static_cast<int64_t>(at);
    const std::string_view line = next_line(piece.text, at);
    if (is_blank(line)) continue;
    std::string problem;
    if (options_.conversations) {
      add_record(piece, ordinal, line, problem, out);
    } else {
      const std::string_view text = text_of(parser, line, source.selector, problem);
      if (problem.empty()) add_text(piece, ordinal, text, out);
    }
    if (problem.empty()) continue;
    const bool numbered_records = source.kind == SourceKind::JsonArray;
    HEARTH_CHECK(options_.bad_lines == BadLines::Skip, BadInput,
                 "{}:{}{}: {}; mend the {}, or leave such {}s out with --skip-bad", source.path,
                 numbered_records ? " record " : "", line_number, problem,
                 numbered_records ? "record" : "line", numbered_records ? "record" : "line");
    ++out.counts(piece.source).num_skipped;
  }
}

void DocumentEncoder::add_text(const CorpusPiece& piece, int64_t ordinal, std::string_view text,
                               RunBuilder& out) const {
  if (is_blank(text)) {
    ++out.counts(piece.source).num_empty;
    return;
  }
  std::vector<int32_t> tokens = tokenizer_.encode(text, SpecialTokens::Add);
  if (eos_id_ && (tokens.empty() || tokens.back() != *eos_id_)) tokens.push_back(*eos_id_);
  add(piece, ordinal, xxh3_64(text), {std::move(tokens), {}}, 0, out);
}

namespace {

void resize(MaskedDocument& document, int64_t length) {
  document.tokens.resize(static_cast<size_t>(length));
  document.loss_mask.resize(static_cast<size_t>(length));
}

}  // namespace

void DocumentEncoder::add_record(const CorpusPiece& piece, int64_t ordinal, std::string_view line,
                                 std::string& problem, RunBuilder& out) const {
  const ConversationInput& input = *options_.conversations;
  std::vector<MaskedDocument> documents;
  uint64_t content_hash = 0;
  try {
    const FineTuningRecord record = read_record(line, input.format, input.fields);
    content_hash = xxh3_64(record.split_key);
    documents = input.encoder->encode(record);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::BadInput) throw;
    problem = error.message();
    return;
  }
  RunCounts& counts = out.counts(piece.source);
  MaskedDocument& first = documents.front();
  MaskedDocument second = documents.size() > 1 ? std::move(documents[1]) : MaskedDocument{};
  if (first.tokens.empty() || (documents.size() > 1 && second.tokens.empty()))
    return void(++counts.num_empty);
  const auto first_size = static_cast<int64_t>(first.tokens.size());
  const auto second_size = static_cast<int64_t>(second.tokens.size());
  if (input.pack_length > 0 && first_size + second_size > input.pack_length) {
    if (input.long_documents == LongDocuments::Drop) return void(++counts.num_dropped);
    ++counts.num_cut;
    const PairLengths cut = cut_pair({first_size, second_size}, input.pack_length);
    resize(first, cut.first);
    resize(second, cut.second);
  }
  const auto trained = [](const MaskedDocument& d) {
    return std::find(d.loss_mask.begin(), d.loss_mask.end(), uint8_t{1}) != d.loss_mask.end();
  };
  if (!trained(first) || (!second.tokens.empty() && !trained(second))) ++counts.num_untrained;
  first.tokens.insert(first.tokens.end(), second.tokens.begin(), second.tokens.end());
  first.loss_mask.insert(first.loss_mask.end(), second.loss_mask.begin(), second.loss_mask.end());
  add(piece, ordinal, content_hash, first, static_cast<int64_t>(second.tokens.size()), out);
}

void DocumentEncoder::encode_tokens(const CorpusPiece& piece, RunBuilder& out) const {
  const CorpusSource& source = sources_[static_cast<size_t>(piece.source)];
  const int64_t vocab_size = tokenizer_.vocab_size();
  const auto size = static_cast<int64_t>(piece.tokens.size());
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < size; ++i) {
    const int64_t id = piece.tokens[static_cast<size_t>(i)];
    HEARTH_CHECK(id >= 0 && id < vocab_size, BadInput,
                 "{}:{}: element {} is {}, outside the tokenizer's vocabulary of {}; the ids come from "
                 "another tokenizer",
                 source.path, source.selector, piece.ordinal + i, id, vocab_size);
    tokens.push_back(static_cast<int32_t>(id));
    const bool row_ends = piece.row_length > 0 && (i + 1) % piece.row_length == 0;
    if (i + 1 < size && id != eos_id_ && !row_ends) continue;
    const int64_t first = piece.ordinal + i + 1 - static_cast<int64_t>(tokens.size());
    const bool empty = tokens.size() == 1 && tokens[0] == eos_id_;  // padding
    if (empty) ++out.counts(piece.source).num_empty;
    if (!empty) add(piece, first, xxh3_64(std::as_bytes(std::span(tokens))), {tokens, {}}, 0, out);
    tokens.clear();
  }
}

void DocumentEncoder::add(const CorpusPiece& piece, int64_t ordinal, uint64_t content_hash,
                          const MaskedDocument& document, int64_t num_second, RunBuilder& out) const {
  if (document.tokens.empty())
    return void(++out.counts(piece.source).num_empty);  // a tokenizer may drop every character
  // The split must not follow the seed: a second call with another seed keeps each text on its side.
  const double uniform = static_cast<double>(mix64(content_hash) >> 11) * 0x1.0p-53;
  const size_t split = uniform < options_.validation_fraction ? 1 : 0;
  const auto source = static_cast<uint32_t>(piece.source);
  const uint64_t key = mix64(source_keys_[source] + static_cast<uint64_t>(ordinal));
  out.add(split,
          {.key = key,
           .ordinal = static_cast<uint64_t>(ordinal),
           .num_second = checked_cast<uint32_t>(num_second),
           .source = source},
          document.tokens, document.loss_mask);
}

}  // namespace hearth
