// What a teacher thinks of every token of a dataset, on disk: the `top_k` largest log-probabilities of each
// position and the mass of all others. Keyed by the shard's digest and the token's place in it, so any
// window, packing, order, micro-batch and layout of a run finds its rows. The format is written down in
// data/README.md. Const members are thread-safe. Errors: BadInput for anything wrong in the folder, Io and
// NoSpace from the system.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/file_system.h"

namespace hearth {

struct TeacherCacheInfo {
  std::string teacher;           // what was asked, for people
  std::string tokenizer_digest;  // of the data
  int64_t vocab_size = 0;        // ids are below it
  int64_t top_k = 0;
  double temperature = 1.0;  // that divided the logits
  bool operator==(const TeacherCacheInfo&) const = default;
};

struct TeacherCacheShard {
  std::string shard_digest;  // ShardInfo::digest
  std::string file;          // a plain name inside the folder
  int64_t num_tokens = 0, size_bytes = 0;
  std::string digest;  // XXH3-128 of the file
  bool operator==(const TeacherCacheShard&) const = default;
};

// Rows for consecutive tokens: row t is the distribution of the token behind token t.
struct TeacherRows {
  std::vector<int32_t> ids;      // [rows x top_k], most likely first
  std::vector<float> logprobs;   // [rows x top_k]
  std::vector<float> tail_mass;  // [rows]: of all other ids together, in [0, 1]
  void resize(int64_t rows, int64_t top_k);
};

// Writes the file of one shard; tokens come in order. A file that is finished is never written again.
class TeacherCacheWriter {
 public:
  TeacherCacheWriter(FileSystem& fs, const std::string& directory, const TeacherCacheInfo& info,
                     const std::string& shard_digest, int64_t num_tokens);
  ~TeacherCacheWriter();  // removes the temporary file unless finish() returned
  TeacherCacheWriter(const TeacherCacheWriter&) = delete;
  TeacherCacheWriter& operator=(const TeacherCacheWriter&) = delete;
  void append(const TeacherRows& rows);
  // All tokens must have come. Publishes the file by rename.
  TeacherCacheShard finish();

 private:
  struct Hdf5;
  FileSystem& fs_;
  std::string directory_, path_, temporary_path_;
  TeacherCacheInfo info_;
  TeacherCacheShard shard_;
  std::unique_ptr<Hdf5> hdf5_;
  int64_t written_ = 0;
};

// The folder's cache.json: replaced atomically. Throws Error{BadInput} where it is of another teacher, top_k
// or temperature.
std::string teacher_cache_file(const std::string& shard_digest);
void write_teacher_cache_manifest(FileSystem& fs, const std::string& directory, const TeacherCacheInfo& info,
                                  const std::vector<TeacherCacheShard>& shards);

class TeacherCache {
 public:
  static std::unique_ptr<TeacherCache> open(FileSystem& fs, const std::string& directory);
  ~TeacherCache();

  const TeacherCacheInfo& info() const { return info_; }
  const std::vector<TeacherCacheShard>& shards() const { return shards_; }
  bool contains(const std::string& shard_digest) const { return by_digest_.contains(shard_digest); }
  int64_t num_tokens(const std::string& shard_digest) const;  // of that shard; 0 where it is not here
  // Rows of tokens [first, first + count) of a shard. Throws Error{BadInput} that names the shard where it is
  // not in the cache, or holds values that no distribution has.
  TeacherRows read(const std::string& shard_digest, int64_t first, int64_t count) const;
  // Every file against its digest.
  void verify_all() const;

 private:
  struct Open;  // a file and where its arrays lie
  TeacherCache(FileSystem& fs, std::string directory);
  const Open& opened(const std::string& shard_digest) const;

  FileSystem& fs_;
  std::string directory_;
  TeacherCacheInfo info_;
  std::vector<TeacherCacheShard> shards_;
  std::map<std::string, size_t> by_digest_;
  mutable std::mutex mutex_;  // guards open_
  mutable std::map<std::string, std::unique_ptr<Open>> open_;
};

}  // namespace hearth
