// The inputs of `data prepare`, cut into units of work. A unit is a run of pieces of about the same total
// size; where the cuts fall depends only on the inputs, never on the number of workers, so a unit can be done
// again after a kill.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/file_system.h"

namespace hearth {

enum class SourceKind { Text, JsonLines, JsonArray, Tokens };

// What a .txt file is: one document, or one document per block of lines separated by blank lines.
enum class TextDocuments { WholeFile, Paragraphs };

struct CorpusSource {
  std::string path;
  SourceKind kind = SourceKind::Text;
  int64_t size_bytes = 0;  // of the file as it lies on disk
  std::string digest;      // XXH3-128 of its bytes; filled by prepare
  std::string selector;    // JSON field or HDF5 dataset
};

enum class CorpusContent { Documents, Records };  // Records: JSON objects, as for fine-tuning
struct CorpusEnding {
  SourceKind kind;
  std::string text;  // ".jsonl.gz"
};
// What a file of this name is read as. For Documents .txt .jsonl, each also .gz .zst; .h5 .hdf5; for Records
// .jsonl and .json, also .gz .zst; nothing for any other name.
std::optional<CorpusEnding> corpus_ending(const std::string& path, CorpusContent content);

// Expands files and folders (recursive, names sorted, hidden names and unknown endings left out) in the given
// order. Throws Error{BadInput}: a missing input, a named file with an unknown ending, folders nested deeper
// than 32 (a cycle of links).
struct CorpusListing {
  std::vector<CorpusSource> sources;
  int64_t num_ignored = 0;  // files inside folders with another ending
};
CorpusListing list_corpus(FileSystem& fs, const std::vector<std::string>& inputs, CorpusContent content);

// A part of one source that ends at a document's end.
struct CorpusPiece {
  int32_t source = 0;
  int64_t ordinal = 0;     // unique within the source and ascending: byte offset, or element for Tokens
  int64_t first_line = 1;  // of JsonLines; of JsonArray the first record's number, from 1
  std::string text;        // Text: one document, or several paragraphs; Json*: whole lines, one value each
  std::vector<int64_t> tokens;  // Tokens
  int64_t row_length = 0;       // Tokens: a document ends after each row; 0: only after eos
};

struct CorpusUnit {
  int64_t number = 0;
  std::vector<CorpusPiece> pieces;
  int64_t raw_bytes_done = 0;  // of all sources, when this unit is done
};

struct CorpusOptions {
  TextDocuments text_documents = TextDocuments::WholeFile;
  std::optional<int32_t> eos_id;  // where flat token files are cut
  int64_t unit_bytes = 4 << 20;   // a unit ends once it has this many bytes
};

// A text document longer than this is cut, preferably at a blank line, into several: it is far beyond any
// context length, and memory stays bounded.
inline constexpr int64_t kMaxDocumentBytes = 16 << 20;
// A JSON line, or an element of a JSON array, longer than this is an error.
inline constexpr int64_t kMaxLineBytes = 64 << 20;

// Not thread-safe: callers take turns. Errors name the file.
class CorpusReader {
 public:
  CorpusReader(FileSystem& fs, std::vector<CorpusSource> sources, const CorpusOptions& options);
  ~CorpusReader();
  std::optional<CorpusUnit> next();

 private:
  class SourceReader;
  class TextReader;
  class LineReader;
  class RecordReader;
  class TokenReader;
  std::unique_ptr<SourceReader> open_source(int32_t index);
  FileSystem& fs_;
  std::vector<CorpusSource> sources_;
  CorpusOptions options_;
  int32_t next_source_ = 0;
  int64_t next_unit_ = 0;
  int64_t raw_bytes_before_ = 0;  // of sources that are done
  std::unique_ptr<SourceReader> reader_;
};

}  // namespace hearth
