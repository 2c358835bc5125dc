#include "data/teacher_cache.h"

#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/strict_json.h"
#include "data/hdf5_handle.h"
#include "data/shard.h"

namespace hearth {
namespace {

constexpr const char* kFormat = "hearth.teacher_cache";
constexpr int64_t kVersion = 1;
constexpr float kRounding = 1e-3f;  // by which fp32 sums of probabilities may pass their bounds

void check(herr_t status, const std::string& path, const char* doing) {
  if (status < 0) fail_hdf5(ErrorKind::Io, fmt::format("{}: cannot {}", path, doing));
}

Hdf5Handle property_list(hid_t kind) {
  return own(H5Pcreate(kind), H5Pclose, ErrorKind::Internal, "H5Pcreate");
}

// [rows, columns], contiguous, all space taken at once so that a full disk shows here.
Hdf5Handle create_array(hid_t file, const char* name, hid_t type, int64_t rows, int64_t columns,
                        const std::string& path) {
  const hsize_t size[2] = {static_cast<hsize_t>(rows), static_cast<hsize_t>(columns)};
  const Hdf5Handle space =
      own(H5Screate_simple(2, size, nullptr), H5Sclose, ErrorKind::Internal, "H5Screate_simple");
  const Hdf5Handle creation = property_list(H5P_DATASET_CREATE);
  check(H5Pset_obj_track_times(creation.get(), false), path, "switch off time stamps");
  check(H5Pset_layout(creation.get(), H5D_CONTIGUOUS), path, "set the layout");
  check(H5Pset_alloc_time(creation.get(), H5D_ALLOC_TIME_EARLY), path, "set the allocation time");
  check(H5Pset_fill_time(creation.get(), H5D_FILL_TIME_NEVER), path, "set the fill time");
  return own(H5Dcreate2(file, name, type, space.get(), H5P_DEFAULT, creation.get(), H5P_DEFAULT), H5Dclose,
             ErrorKind::Io,
             fmt::format("{}: cannot create dataset {} of {} x {} elements", path, name, rows, columns));
}

void write_rows(const Hdf5Handle& array, hid_t memory_type, int64_t first, int64_t rows, int64_t columns,
                const void* values, const std::string& path) {
  const hsize_t start[2] = {static_cast<hsize_t>(first), 0},
                count[2] = {static_cast<hsize_t>(rows), static_cast<hsize_t>(columns)};
  const auto memory =
      own(H5Screate_simple(2, count, nullptr), H5Sclose, ErrorKind::Internal, "H5Screate_simple");
  const auto space = own(H5Dget_space(array.get()), H5Sclose, ErrorKind::Internal, "H5Dget_space");
  check(H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start, nullptr, count, nullptr), path,
        "select rows");
  check(H5Dwrite(array.get(), memory_type, memory.get(), space.get(), H5P_DEFAULT, values), path,
        "write rows");
}

// Where an array of the file lies; it must be what create_array makes.
int64_t array_offset(hid_t file, const char* name, hid_t type, int64_t rows, int64_t columns,
                     int64_t size_bytes, const std::string& path) {
  const auto array = own(H5Dopen2(file, name, H5P_DEFAULT), H5Dclose, ErrorKind::BadInput,
                         fmt::format("{}: cannot open {}", path, name));
  const auto stored = own(H5Dget_type(array.get()), H5Tclose, ErrorKind::BadInput, "H5Dget_type");
  const auto space = own(H5Dget_space(array.get()), H5Sclose, ErrorKind::BadInput, "H5Dget_space");
  const auto creation =
      own(H5Dget_create_plist(array.get()), H5Pclose, ErrorKind::BadInput, "H5Dget_create_plist");
  hsize_t size[2] = {0, 0};
  const bool shape = H5Sget_simple_extent_ndims(space.get()) == 2 &&
                     H5Sget_simple_extent_dims(space.get(), size, nullptr) == 2 &&
                     size[0] == static_cast<hsize_t>(rows) && size[1] == static_cast<hsize_t>(columns);
  const bool plain = H5Tequal(stored.get(), type) > 0 && H5Pget_layout(creation.get()) == H5D_CONTIGUOUS &&
                     H5Pget_nfilters(creation.get()) == 0 && H5Pget_external_count(creation.get()) == 0;
  const haddr_t offset = H5Dget_offset(array.get());
  const int64_t bytes = checked_mul(checked_mul(rows, columns), 4);
  HEARTH_CHECK(shape && plain && offset != HADDR_UNDEF && static_cast<int64_t>(offset) + bytes <= size_bytes,
               BadInput, "{}: {} is not a plain array of {} x {} elements", path, name, rows, columns);
  return static_cast<int64_t>(offset);
}

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
  require_hdf5();
  const Hdf5Handle creation = property_list(H5P_FILE_CREATE), access = property_list(H5P_FILE_ACCESS);
  check(H5Pset_obj_track_times(creation.get(), false), path_, "switch off time stamps");
  check(H5Pset_file_locking(access.get(), false, true), path_, "switch off locking");
  check(H5Pset_alignment(access.get(), 4096, 4096), path_, "set the alignment");
  Hdf5Handle file = own(H5Fcreate(temporary_path_.c_str(), H5F_ACC_TRUNC, creation.get(), access.get()),
                        H5Fclose, ErrorKind::Io, fmt::format("{}: cannot create", temporary_path_));
  Hdf5Handle ids = create_array(file.get(), "ids", H5T_STD_U32LE, num_tokens, info.top_k, path_),
             logprobs = create_array(file.get(), "logprobs", H5T_IEEE_F32LE, num_tokens, info.top_k, path_),
             tail = create_array(file.get(), "tail_mass", H5T_IEEE_F32LE, num_tokens, 1, path_);
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
  write_rows(hdf5_->ids, H5T_NATIVE_INT32, written_, count, info_.top_k, rows.ids.data(), path_);
  write_rows(hdf5_->logprobs, H5T_NATIVE_FLOAT, written_, count, info_.top_k, rows.logprobs.data(), path_);
  write_rows(hdf5_->tail_mass, H5T_NATIVE_FLOAT, written_, count, 1, rows.tail_mass.data(), path_);
  written_ += count;
}

TeacherCacheShard TeacherCacheWriter::finish() {
  HEARTH_ASSERT(written_ == shard_.num_tokens);
  const bool closed =
      hdf5_->ids.reset() && hdf5_->logprobs.reset() && hdf5_->tail_mass.reset() && hdf5_->file.reset();
  if (!closed) fail_hdf5(ErrorKind::Io, fmt::format("{}: cannot close", path_));
  {
    const auto file = fs_.create(temporary_path_, CreateMode::Append);
    file->sync();  // HDF5 wrote through its own descriptor; the bytes must be durable before the name is
    file->close();
  }
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
  const auto offset = [&](const char* name, hid_t type, int64_t columns) {
    return array_offset(file.get(), name, type, shard.num_tokens, columns, shard.size_bytes, path);
  };
  fresh->ids = offset("ids", H5T_STD_U32LE, info_.top_k);
  fresh->logprobs = offset("logprobs", H5T_IEEE_F32LE, info_.top_k);
  fresh->tail_mass = offset("tail_mass", H5T_IEEE_F32LE, 1);
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
