#include "data/teacher_cache.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/strict_json.h"
#include "data/hdf5_array.h"
#include "data/hdf5_handle.h"
#include "data/shard.h"

namespace hearth {
namespace {

constexpr const char* kFormat = "hearth.teacher_cache";
constexpr int64_t kVersion = 1;
constexpr float kRounding = 1e-3f;  // by which fp32 sums of probabilities may pass their bounds

nlohmann::ordered_json to_json(const TeacherCacheInfo& info, const std::vector<TeacherCacheShard>& shards) {
  nlohmann::ordered_json json{{"format", kFormat},
                              {"version", kVersion},
                              {"teacher", info.teacher},
                              {"tokenizer_digest", info.tokenizer_digest},
                              {"vocab_size", info.vocab_size},
                              {"top_k", info.top_k},
                              {"temperature", info.temperature},
                              {"shards", nlohmann::ordered_json::array()}};
  for (const auto& shard : shards)
    json["shards"].push_back({{"shard_digest", shard.shard_digest},
                              {"file", shard.file},
                              {"num_tokens", shard.num_tokens},
                              {"size_bytes", shard.size_bytes},
                              {"digest", shard.digest}});
  return json;
}

}  // namespace

void TeacherRows::resize(int64_t rows, int64_t top_k) {
  ids.resize(static_cast<size_t>(rows * top_k));
  logprobs.resize(static_cast<size_t>(rows * top_k));
  tail_mass.resize(static_cast<size_t>(rows));
}

std::string teacher_cache_file(const std::string& shard_digest) {
  return "teacher-" + shard_digest + ".h5";
}

void write_teacher_cache_manifest(FileSystem& fs, const std::string& directory, const TeacherCacheInfo& info,
                                  const std::vector<TeacherCacheShard>& shards) {
  fs.write_atomically(directory + "/cache.json", to_json(info, shards).dump(1) + "\n");
}

struct TeacherCacheWriter::Hdf5 {
  Hdf5Handle file, ids, logprobs, tail_mass;
};

TeacherCacheWriter::TeacherCacheWriter(FileSystem& fs, const std::string& directory,
                                       const TeacherCacheInfo& info, const std::string& shard_digest,
                                       int64_t num_tokens)
    : fs_(fs),
      directory_(directory),
      path_(directory + "/" + teacher_cache_file(shard_digest)),
      temporary_path_(path_ + ".tmp"),
      info_(info) {
  shard_ = {.shard_digest = shard_digest, .file = teacher_cache_file(shard_digest), .num_tokens = num_tokens};
  const int64_t needed = checked_mul(num_tokens, info.top_k * 8 + 4);
  HEARTH_CHECK(fs.free_bytes(directory) > needed, NoSpace,
               "{}: {} bytes needed for this shard, {} free in {}", path_, needed, fs.free_bytes(directory),
               directory);
  Hdf5Handle file = create_hdf5(temporary_path_);
  const auto array = [&](const char* name, hid_t type, int64_t columns) {
    return create_array(file.get(), name, type, {num_tokens, columns}, path_);
  };
  Hdf5Handle ids = array("ids", H5T_STD_U32LE, info.top_k),
             logprobs = array("logprobs", H5T_IEEE_F32LE, info.top_k),
             tail = array("tail_mass", H5T_IEEE_F32LE, 1);
  hdf5_ = std::make_unique<Hdf5>(Hdf5{std::move(file), std::move(ids), std::move(logprobs), std::move(tail)});
}

TeacherCacheWriter::~TeacherCacheWriter() {
  hdf5_.reset();
  std::error_code ignored;  // after finish() the temporary name is gone already
  std::filesystem::remove(temporary_path_, ignored);
}

void TeacherCacheWriter::append(const TeacherRows& rows) {
  const auto count = static_cast<int64_t>(rows.tail_mass.size());
  if (count == 0) return;
  HEARTH_ASSERT(static_cast<int64_t>(rows.ids.size()) == count * info_.top_k &&
                rows.ids.size() == rows.logprobs.size() && written_ + count <= shard_.num_tokens);
  write_rows(hdf5_->ids, H5T_NATIVE_INT32, written_, count, rows.ids.data(), path_);
  write_rows(hdf5_->logprobs, H5T_NATIVE_FLOAT, written_, count, rows.logprobs.data(), path_);
  write_rows(hdf5_->tail_mass, H5T_NATIVE_FLOAT, written_, count, rows.tail_mass.data(), path_);
  written_ += count;
}

TeacherCacheShard TeacherCacheWriter::finish() {
  HEARTH_ASSERT(written_ == shard_.num_tokens);
  const bool closed =
      hdf5_->ids.reset() && hdf5_->logprobs.reset() && hdf5_->tail_mass.reset() && hdf5_->file.reset();
  if (!closed) fail_hdf5(ErrorKind::Io, fmt::format("{}: cannot close", path_));
  sync_written(fs_, temporary_path_);  // before the name is
  {
    const auto file = fs_.open(temporary_path_);
    shard_.size_bytes = file->size();
    shard_.digest = file_digest(*file);
  }
  fs_.rename(temporary_path_, path_);
  fs_.sync_directory(directory_);
  return shard_;
}

struct TeacherCache::Open {
  std::unique_ptr<ReadableFile> file;
  int64_t ids = 0, logprobs = 0, tail_mass = 0;  // byte offsets
};

TeacherCache::TeacherCache(FileSystem& fs, std::string directory)
    : fs_(fs), directory_(std::move(directory)) {}
TeacherCache::~TeacherCache() = default;

std::unique_ptr<TeacherCache> TeacherCache::open(FileSystem& fs, const std::string& directory) {
  const std::string path = directory + "/cache.json";
  HEARTH_CHECK(fs.exists(path), BadInput, "{}: there is no cache.json; make one with `hearth distill cache`",
               directory);
  const nlohmann::json json = parse_json_strict(fs.read_text(path), path);
  auto cache = std::unique_ptr<TeacherCache>(new TeacherCache(fs, directory));
  try {
    HEARTH_CHECK(json.at("format") == kFormat, BadInput, "{}: not a teacher's cache", path);
    HEARTH_CHECK(json.at("version") == kVersion, BadInput, "{}: version {}, this program reads {}", path,
                 json.at("version").dump(), kVersion);
    cache->info_ = {.teacher = json.at("teacher").get<std::string>(),
                    .tokenizer_digest = json.at("tokenizer_digest").get<std::string>(),
                    .vocab_size = json.at("vocab_size").get<int64_t>(),
                    .top_k = json.at("top_k").get<int64_t>(),
                    .temperature = json.at("temperature").get<double>()};
    for (const auto& entry : json.at("shards"))
      cache->shards_.push_back({.shard_digest = entry.at("shard_digest").get<std::string>(),
                                .file = entry.at("file").get<std::string>(),
                                .num_tokens = entry.at("num_tokens").get<int64_t>(),
                                .size_bytes = entry.at("size_bytes").get<int64_t>(),
                                .digest = entry.at("digest").get<std::string>()});
  } catch (const nlohmann::json::exception& error) {
    fail(ErrorKind::BadInput, "{}: {}", path, error.what());
  }
  const TeacherCacheInfo& info = cache->info_;
  HEARTH_CHECK(info.vocab_size > 0 && info.top_k > 0 && info.top_k <= info.vocab_size &&
                   std::isfinite(info.temperature) && info.temperature > 0,
               BadInput, "{}: top_k {}, vocab_size {} and temperature {} do not fit together", path,
               info.top_k, info.vocab_size, info.temperature);
  for (size_t i = 0; i < cache->shards_.size(); ++i) {
    const TeacherCacheShard& shard = cache->shards_[i];
    HEARTH_CHECK(shard.file == teacher_cache_file(shard.shard_digest) &&
                     shard.file.find('/') == std::string::npos && shard.num_tokens > 0,
                 BadInput, "{}: entry of shard {} names the file '{}'", path, shard.shard_digest, shard.file);
    cache->by_digest_[shard.shard_digest] = i;
  }
  return cache;
}

const TeacherCache::Open& TeacherCache::opened(const std::string& shard_digest) const {
  const auto found = by_digest_.find(shard_digest);
  HEARTH_CHECK(found != by_digest_.end(), BadInput,
               "{}: holds nothing of shard {}; run `hearth distill cache` again, which adds what is missing",
               directory_, shard_digest);
  const TeacherCacheShard& shard = shards_[found->second];
  const std::lock_guard lock(mutex_);
  auto& open = open_[shard_digest];
  if (open != nullptr) return *open;
  const std::string path = directory_ + "/" + shard.file;
  auto fresh = std::make_unique<Open>();
  HEARTH_CHECK(!fs_.is_symlink(path), BadInput, "{}: is a link", path);
  fresh->file = fs_.open(path);
  HEARTH_CHECK(fresh->file->size() == shard.size_bytes, BadInput, "{}: {} bytes, cache.json says {}", path,
               fresh->file->size(), shard.size_bytes);
  const Hdf5Handle file = open_hdf5_read_only(path);
  const auto offset = [&](const char* name, hid_t type, const char* type_name, int64_t columns) {
    const std::vector<int64_t> shape{shard.num_tokens, columns};
    const PlainArray array = find_plain_array(
        file.get(), name, {{type}, type_name, /*dims=*/2, checked_mul(shard.num_tokens, columns)},
        shard.size_bytes, path);
    HEARTH_CHECK(array.shape == shape, BadInput, "{}: {} has {} elements, expected {}", path, name,
                 fmt::join(array.shape, " x "), fmt::join(shape, " x "));
    return array.extent.offset;
  };
  fresh->ids = offset("ids", H5T_STD_U32LE, "uint32", info_.top_k);
  fresh->logprobs = offset("logprobs", H5T_IEEE_F32LE, "float32", info_.top_k);
  fresh->tail_mass = offset("tail_mass", H5T_IEEE_F32LE, "float32", 1);
  open = std::move(fresh);
  return *open;
}

int64_t TeacherCache::num_tokens(const std::string& shard_digest) const {
  const auto found = by_digest_.find(shard_digest);
  return found == by_digest_.end() ? 0 : shards_[found->second].num_tokens;
}

TeacherRows TeacherCache::read(const std::string& shard_digest, int64_t first, int64_t count) const {
  const Open& open = opened(shard_digest);
  const TeacherCacheShard& shard = shards_[by_digest_.at(shard_digest)];
  HEARTH_REQUIRE(first >= 0 && count >= 0 && first + count <= shard.num_tokens,
                 "{}: tokens [{}, {}) of {} asked for", shard.file, first, first + count, shard.num_tokens);
  TeacherRows rows;
  rows.resize(count, info_.top_k);
  open.file->read_at(open.ids + first * info_.top_k * 4, std::as_writable_bytes(std::span(rows.ids)));
  open.file->read_at(open.logprobs + first * info_.top_k * 4,
                     std::as_writable_bytes(std::span(rows.logprobs)));
  open.file->read_at(open.tail_mass + first * 4, std::as_writable_bytes(std::span(rows.tail_mass)));
  bool good = true;
  for (const int32_t id : rows.ids) good = good && id >= 0 && id < info_.vocab_size;
  for (const float value : rows.logprobs) good = good && value <= kRounding;  // NaN fails, -inf may be
  for (const float value : rows.tail_mass) good = good && value >= 0 && value <= 1 + kRounding;
  HEARTH_CHECK(good, BadInput,
               "{}/{}: tokens [{}, {}) hold values that no distribution has; make the file anew", directory_,
               shard.file, first, first + count);
  return rows;
}

void TeacherCache::verify_all() const {
  for (const TeacherCacheShard& shard : shards_) {
    const std::string digest = file_digest(*opened(shard.shard_digest).file);
    HEARTH_CHECK(digest == shard.digest, BadInput, "{}/{}: digest {}, cache.json says {}", directory_,
                 shard.file, digest, shard.digest);
  }
}

}  // namespace hearth
