#include "data/corpus.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "data/byte_source.h"
#include "data/token_file.h"

namespace hearth {
namespace {

constexpr int64_t kTokenSlab = 1 << 20;             // elements read from a token file at once
constexpr int64_t kMaxTokensPerDocument = 4 << 20;  // a flat token file without eos is cut here
constexpr int kMaxFolderDepth = 32;                 // below the 40 links at which Linux gives up on a path

void list_folder(FileSystem& fs, const std::string& folder, int depth, CorpusContent content,
                 CorpusListing& out) {
  HEARTH_CHECK(depth <= kMaxFolderDepth, BadInput,
               "{}: folders nested deeper than {}; is there a cycle of links?", folder, kMaxFolderDepth);
  for (const auto& name : fs.list(folder)) {
    if (name[0] == '.') continue;
    const std::string path = folder.ends_with('/') ? folder + name : folder + "/" + name;
    if (fs.is_directory(path)) {
      list_folder(fs, path, depth + 1, content, out);
    } else if (const auto ending = corpus_ending(path, content)) {
      out.sources.push_back({path, ending->kind, fs.open(path)->size(), {}, {}});
    } else {
      ++out.num_ignored;
    }
  }
}

bool is_utf8_continuation(char c) {
  return (static_cast<unsigned char>(c) & 0xC0) == 0x80;
}

// Where to cut a document that is too long: after the last blank line, else the last line end, else a
// character's end.
size_t cut_point(std::string_view text) {
  for (const std::string_view separator : {"\n\n", "\r\n\r\n", "\n"}) {
    const size_t at = text.rfind(separator);
    if (at != std::string_view::npos && at + separator.size() > text.size() / 2) return at + separator.size();
  }
  size_t at = text.size();
  while (at > text.size() - 4 && is_utf8_continuation(text[at - 1])) --at;
  return at > 0 && static_cast<unsigned char>(text[at - 1]) >= 0xC0 ? at - 1 : text.size();
}

// Position after the last line of blanks only that separates paragraphs; 0 if there is none.
size_t last_paragraph_end(std::string_view text) {
  for (size_t at = text.rfind('\n'); at != std::string_view::npos && at > 0; at = text.rfind('\n', at - 1)) {
    size_t back = at;
    while (back > 0 && (text[back - 1] == ' ' || text[back - 1] == '\t' || text[back - 1] == '\r')) --back;
    if (back > 0 && text[back - 1] == '\n') return at + 1;
  }
  return 0;
}

}  // namespace

std::optional<CorpusEnding> corpus_ending(const std::string& path, CorpusContent content) {
  const bool documents = content == CorpusContent::Documents;
  std::vector<CorpusEnding> known{{SourceKind::JsonLines, ".jsonl"}};
  known.push_back(documents ? CorpusEnding{SourceKind::Text, ".txt"}
                            : CorpusEnding{SourceKind::JsonArray, ".json"});
  for (size_t plain = 0; plain < 2; ++plain)
    for (const char* packed : {".gz", ".zst"})
      known.push_back({known[plain].kind, known[plain].text + packed});
  if (documents)
    for (const char* tokens : {".h5", ".hdf5"}) known.push_back({SourceKind::Tokens, tokens});
  for (const CorpusEnding& ending : known)
    if (path.ends_with(ending.text)) return ending;
  return std::nullopt;
}

CorpusListing list_corpus(FileSystem& fs, const std::vector<std::string>& inputs, CorpusContent content) {
  CorpusListing listing;
  for (const auto& input : inputs) {
    HEARTH_CHECK(fs.exists(input), BadInput, "{}: no such file or folder", input);
    if (fs.is_directory(input)) {
      list_folder(fs, input, 1, content, listing);
      continue;
    }
    const auto ending = corpus_ending(input, content);
    HEARTH_CHECK(
        ending.has_value(), BadInput, "{}: unknown kind of file; expected {}", input,
        content == CorpusContent::Documents
            ? ".txt or .jsonl (also .gz, .zst), or .h5; .json holds conversations, which need --format"
            : ".jsonl or .json (also .gz, .zst)");
    listing.sources.push_back({input, ending->kind, fs.open(input)->size(), {}, {}});
  }
  return listing;
}

class CorpusReader::SourceReader {
 public:
  virtual ~SourceReader() = default;
  virtual std::optional<CorpusPiece> next() = 0;  // source is filled in by the caller
  virtual int64_t raw_position() const = 0;
};

namespace {

// Decompressed text with a carried-over rest, without a byte order mark.
class TextBuffer {
 public:
  TextBuffer(FileSystem& fs, const std::string& path) : source_(open_byte_source(fs, path)) {}
  // Grows the buffer to `size` bytes where the source has them; false if it could not grow at all.
  bool fill(size_t size) {
    const size_t had = text_.size();
    if (had >= size || ended_) return had >= size;
    text_.resize(size);
    const size_t got = source_->read(std::span(text_).subspan(had));
    text_.resize(had + got);
    ended_ = text_.size() < size;
    if (at_ == 0 && had == 0 && text_.starts_with("\xEF\xBB\xBF")) {
      text_.erase(0, 3);
      at_ = 3;
    }
    return got > 0;
  }
  bool ended() const { return ended_; }  // the buffer holds all that is left
  const std::string& text() const { return text_; }
  int64_t offset() const { return at_; }  // of the buffer's first byte in the decompressed stream
  int64_t raw_position() const { return source_->raw_position(); }
  std::string take(size_t size) {
    std::string front = text_.substr(0, size);
    text_.erase(0, size);
    at_ += static_cast<int64_t>(size);
    return front;
  }

 private:
  std::unique_ptr<ByteSource> source_;
  std::string text_;
  int64_t at_ = 0;
  bool ended_ = false;
};

}  // namespace

// .txt: a piece is one document, or several whole paragraphs.
class CorpusReader::TextReader final : public SourceReader {
 public:
  TextReader(FileSystem& fs, const std::string& path, const CorpusOptions& options)
      : buffer_(fs, path), options_(options) {}
  std::optional<CorpusPiece> next() override {
    const bool whole = options_.text_documents == TextDocuments::WholeFile;
    buffer_.fill(
        static_cast<size_t>(whole ? kMaxDocumentBytes : std::min(options_.unit_bytes, kMaxDocumentBytes)));
    size_t end = buffer_.text().size();
    if (!buffer_.ended() && !whole) {
      end = last_paragraph_end(buffer_.text());
      if (end == 0) buffer_.fill(static_cast<size_t>(kMaxDocumentBytes));  // one long paragraph
      if (end == 0) end = last_paragraph_end(buffer_.text());
      if (end == 0) end = buffer_.ended() ? buffer_.text().size() : cut_point(buffer_.text());
    } else if (!buffer_.ended()) {
      end = cut_point(buffer_.text());
    }
    if (end == 0) return std::nullopt;
    CorpusPiece piece;
    piece.ordinal = buffer_.offset();
    piece.text = buffer_.take(end);
    return piece;
  }
  int64_t raw_position() const override { return buffer_.raw_position(); }

 private:
  TextBuffer buffer_;
  CorpusOptions options_;
};

// .jsonl: a piece is a run of whole lines.
class CorpusReader::LineReader final : public SourceReader {
 public:
  LineReader(FileSystem& fs, const std::string& path, const CorpusOptions& options)
      : path_(path), buffer_(fs, path), options_(options) {}
  std::optional<CorpusPiece> next() override {
    size_t size = static_cast<size_t>(options_.unit_bytes), end = 0;
    while (true) {
      buffer_.fill(size);
      const size_t newline = buffer_.text().rfind('\n');
      end = buffer_.ended() ? buffer_.text().size() : newline == std::string::npos ? 0 : newline + 1;
      if (end > 0 || buffer_.ended()) break;
      HEARTH_CHECK(size < static_cast<size_t>(kMaxLineBytes), BadInput,
                   "{}:{}: line is longer than {} bytes; is this one JSON object a line?", path_, line_,
                   kMaxLineBytes);
      size *= 2;
    }
    if (end == 0) return std::nullopt;
    CorpusPiece piece;
    piece.ordinal = buffer_.offset();
    piece.first_line = line_;
    piece.text = buffer_.take(end);
    line_ += std::count(piece.text.begin(), piece.text.end(), '\n');
    return piece;
  }
  int64_t raw_position() const override { return buffer_.raw_position(); }

 private:
  std::string path_;
  TextBuffer buffer_;
  CorpusOptions options_;
  int64_t line_ = 1;
};

// .json: an array of values, or values one behind the other. A piece is a run of them, each on one line: line
// ends between their parts become spaces (inside a string a line end is an error of JSON, and stays one).
class CorpusReader::RecordReader final : public SourceReader {
 public:
  RecordReader(FileSystem& fs, const std::string& path, const CorpusOptions& options)
      : path_(path), buffer_(fs, path), options_(options) {}
  std::optional<CorpusPiece> next() override {
    CorpusPiece piece;
    piece.ordinal = written_;
    piece.first_line = record_;
    while (static_cast<int64_t>(piece.text.size()) < options_.unit_bytes) {
      const std::string value = next_value();
      if (value.empty()) break;
      piece.text += value;
      piece.text += '\n';
      ++record_;
    }
    written_ += static_cast<int64_t>(piece.text.size());
    if (piece.text.empty()) return std::nullopt;
    return piece;
  }
  int64_t raw_position() const override { return buffer_.raw_position(); }

 private:
  static constexpr int kEnd = -1;
  int peek() {
    if (at_ == block_.size()) {
      buffer_.fill(kBlockBytes);
      block_ = buffer_.take(buffer_.text().size());
      at_ = 0;
    }
    return at_ < block_.size() ? static_cast<unsigned char>(block_[at_]) : kEnd;
  }
  void skip_white_space() {
    for (int c = peek(); c == ' ' || c == '\t' || c == '\r' || c == '\n'; c = peek()) ++at_;
  }

  // The next value, or nothing at the end of the array or file.
  std::string next_value() {
    skip_white_space();
    if (record_ == 1 && !in_array_ && !ended_ && peek() == '[') {
      in_array_ = true;
      ++at_;
      skip_white_space();
    } else if (in_array_ && record_ > 1 && peek() == ',') {
      ++at_;
      skip_white_space();
    }
    if (in_array_ && peek() == ']') {
      ++at_;
      in_array_ = false, ended_ = true;
      skip_white_space();
    }
    HEARTH_CHECK(!ended_ || peek() == kEnd, BadInput, "{}: something follows the array of {} records", path_,
                 record_ - 1);
    HEARTH_CHECK(!in_array_ || peek() != kEnd, BadInput,
                 "{}: ends inside its array, after record {}; is the file whole?", path_, record_ - 1);
    return ended_ || peek() == kEnd ? "" : scan_value();
  }

  // Up to the comma or bracket behind it; in a file without an array up to the bracket that ends it.
  std::string scan_value() {
    std::string value;
    int depth = 0;
    bool in_string = false, escaped = false;
    for (int c = peek(); c != kEnd; c = peek()) {
      if (!in_string && depth == 0 && in_array_ && (c == ',' || c == ']')) break;
      if (!in_string && depth == 0 && !in_array_ && !value.empty() && c == '\n') break;
      ++at_;
      value.push_back(static_cast<char>(c == '\n' ? (in_string ? '\v' : ' ') : c));
      HEARTH_CHECK(static_cast<int64_t>(value.size()) <= kMaxLineBytes, BadInput,
                   "{}: record {} is longer than {} bytes", path_, record_, kMaxLineBytes);
      if (in_string) {
        in_string = escaped || c != '"';
        escaped = !escaped && c == '\\';
      } else if (c == '"') {
        in_string = true;
      } else if (c == '{' || c == '[') {
        ++depth;
      } else if (c == '}' || c == ']') {
        --depth;
        if (depth == 0 && !in_array_) break;
      }
    }
    HEARTH_CHECK(peek() != kEnd || !in_array_, BadInput, "{}: ends inside record {}; is the file whole?",
                 path_, record_);
    // Nothing between two commas is a record all the same, a bad one; an empty text would end the file.
    return value.empty() ? "," : value;
  }

  static constexpr size_t kBlockBytes = 1 << 20;
  std::string path_;
  TextBuffer buffer_;
  CorpusOptions options_;
  std::string block_;
  size_t at_ = 0;
  int64_t record_ = 1, written_ = 0;
  bool in_array_ = false, ended_ = false;
};

// .h5: a piece is some rows of [N, L], or a stretch of a flat dataset that ends after an eos.
class CorpusReader::TokenReader final : public SourceReader {
 public:
  TokenReader(const CorpusSource& source, const CorpusOptions& options)
      : file_(source.path, source.selector), size_bytes_(source.size_bytes), options_(options) {}
  std::optional<CorpusPiece> next() override { return file_.is_flat() ? next_flat() : next_rows(); }
  int64_t raw_position() const override {
    const double share =
        file_.num_rows() == 0 ? 1 : static_cast<double>(row_) / static_cast<double>(file_.num_rows());
    return static_cast<int64_t>(share * static_cast<double>(size_bytes_));
  }

 private:
  std::optional<CorpusPiece> next_rows() {
    if (row_ == file_.num_rows() || file_.row_length() == 0) return std::nullopt;
    const int64_t per_slab = std::max<int64_t>(1, kTokenSlab / file_.row_length());
    const int64_t count = std::min(per_slab, file_.num_rows() - row_);
    CorpusPiece piece;
    piece.ordinal = row_ * file_.row_length();
    piece.row_length = file_.row_length();
    piece.tokens = file_.read_rows(row_, count);
    row_ += count;
    return piece;
  }
  std::optional<CorpusPiece> next_flat() {
    while (row_ < file_.num_rows() && static_cast<int64_t>(rest_.size()) < kMaxTokensPerDocument) {
      const int64_t count = std::min(kTokenSlab, file_.num_rows() - row_);
      const auto slab = file_.read_rows(row_, count);
      row_ += count;
      rest_.insert(rest_.end(), slab.begin(), slab.end());
      if (options_.eos_id && std::find(slab.begin(), slab.end(), *options_.eos_id) != slab.end()) break;
    }
    if (rest_.empty()) return std::nullopt;
    size_t end = rest_.size();
    if (row_ < file_.num_rows() && options_.eos_id) {
      const auto last_eos = std::find(rest_.rbegin(), rest_.rend(), int64_t{*options_.eos_id});
      if (last_eos != rest_.rend()) end = static_cast<size_t>(rest_.rend() - last_eos);
    }
    CorpusPiece piece;
    piece.ordinal = row_ - static_cast<int64_t>(rest_.size());
    piece.tokens.assign(rest_.begin(), rest_.begin() + static_cast<int64_t>(end));
    rest_.erase(rest_.begin(), rest_.begin() + static_cast<int64_t>(end));
    return piece;
  }

  TokenFile file_;
  int64_t size_bytes_;
  CorpusOptions options_;
  int64_t row_ = 0;
  std::vector<int64_t> rest_;  // read, but the document has not ended
};

CorpusReader::CorpusReader(FileSystem& fs, std::vector<CorpusSource> sources, const CorpusOptions& options)
    : fs_(fs), sources_(std::move(sources)), options_(options) {
  HEARTH_ASSERT(options.unit_bytes > 0);
}
CorpusReader::~CorpusReader() = default;

std::unique_ptr<CorpusReader::SourceReader> CorpusReader::open_source(int32_t index) {
  const CorpusSource& source = sources_[static_cast<size_t>(index)];
  switch (source.kind) {
    case SourceKind::Text:
      return std::make_unique<TextReader>(fs_, source.path, options_);
    case SourceKind::JsonLines:
      return std::make_unique<LineReader>(fs_, source.path, options_);
    case SourceKind::JsonArray:
      return std::make_unique<RecordReader>(fs_, source.path, options_);
    default:
      return std::make_unique<TokenReader>(source, options_);
  }
}

std::optional<CorpusUnit> CorpusReader::next() {
  CorpusUnit unit;
  unit.number = next_unit_;
  int64_t bytes = 0;
  while (bytes < options_.unit_bytes) {
    if (!reader_) {
      if (next_source_ == static_cast<int32_t>(sources_.size())) break;
      reader_ = open_source(next_source_++);
    }
    auto piece = reader_->next();
    if (!piece) {
      reader_.reset();
      raw_bytes_before_ += sources_[static_cast<size_t>(next_source_ - 1)].size_bytes;
      continue;
    }
    piece->source = next_source_ - 1;
    bytes += static_cast<int64_t>(piece->text.size() + piece->tokens.size() * sizeof(int64_t));
    unit.pieces.push_back(std::move(*piece));
  }
  if (unit.pieces.empty()) return std::nullopt;
  ++next_unit_;
  unit.raw_bytes_done = raw_bytes_before_ + (reader_ ? reader_->raw_position() : 0);
  return unit;
}

}  // namespace hearth
