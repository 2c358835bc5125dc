#include "trainer/checkpoint/checkpoint_commit.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/hash.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/safetensors.h"

namespace hearth {
namespace {

using nlohmann::json;

constexpr int64_t kChunkBytes = int64_t{4} << 20;  // scanned, hashed and written while still in the cache

void pass(const PointHook& at_point, std::string_view point) {
  if (at_point) at_point(point);
}

// Number of the first non-finite element, or -1. A float is not finite when all bits of its exponent are set.
template <class Bits>
int64_t first_non_finite(const std::byte* data, int64_t count, Bits exponent) {
  const auto at = [data](int64_t i) {
    Bits bits;
    std::memcpy(&bits, data + i * static_cast<int64_t>(sizeof(Bits)), sizeof(Bits));
    return bits;
  };
  bool any = false;
  for (int64_t i = 0; i < count; ++i) any |= (at(i) & exponent) == exponent;  // no early exit: vectorised
  if (!any) return -1;
  for (int64_t i = 0;; ++i)
    if ((at(i) & exponent) == exponent) return i;
}

void require_finite(const TensorPiece& piece, int64_t first, std::span<const std::byte> bytes) {
  const int64_t count = static_cast<int64_t>(bytes.size()) / size_bytes(piece.dtype);
  int64_t bad = -1;
  switch (piece.dtype) {
    case DType::F64:
      bad = first_non_finite<uint64_t>(bytes.data(), count, 0x7ff0000000000000u);
      break;
    case DType::F32:
      bad = first_non_finite<uint32_t>(bytes.data(), count, 0x7f800000u);
      break;
    case DType::F16:
      bad = first_non_finite<uint16_t>(bytes.data(), count, 0x7c00u);
      break;
    case DType::BF16:
      bad = first_non_finite<uint16_t>(bytes.data(), count, 0x7f80u);
      break;
    default:
      return;
  }
  HEARTH_CHECK(bad < 0, Numeric,
               "{}: element {} of this rank's part is not finite; it is not saved over good ones", piece.name,
               piece.begin + first + bad);
}

void check_piece(const TensorPiece& piece) {
  const size_t dims = piece.shape.size();
  HEARTH_REQUIRE(piece.box.offset.size() == dims && piece.box.extent.size() == dims,
                 "{}: box and shape differ in rank", piece.name);
  const int64_t elements = checked_numel(piece.box.extent, piece.name);
  HEARTH_REQUIRE(0 <= piece.begin && piece.begin <= piece.end && piece.end <= elements,
                 "{}: elements [{}, {}) of a box of {}", piece.name, piece.begin, piece.end, elements);
}

// A piece that is a whole box keeps its shape in the file; a flat part is one-dimensional.
std::vector<int64_t> stored_shape(const TensorPiece& piece) {
  const bool whole = piece.begin == 0 && piece.end == checked_numel(piece.box.extent, piece.name);
  return whole ? piece.box.extent : std::vector<int64_t>{piece.elements()};
}

void write_piece(SafetensorsWriter& writer, const TensorPiece& piece, const void* direct,
                 const PieceReader& read, FiniteCheck finite_check, std::vector<std::byte>& buffer) {
  const int64_t width = size_bytes(piece.dtype), step = kChunkBytes / width;
  for (int64_t at = 0; at < piece.elements(); at += step) {
    const int64_t count = std::min(step, piece.elements() - at);
    std::span<const std::byte> chunk;
    if (direct != nullptr) {
      chunk = {static_cast<const std::byte*>(direct) + at * width, static_cast<size_t>(count * width)};
    } else {
      buffer.resize(static_cast<size_t>(count * width));
      read(piece, at, count, buffer.data());
      chunk = buffer;
    }
    if (finite_check == FiniteCheck::Yes) require_finite(piece, at, chunk);
    writer.append(chunk);
  }
}

void write_durably(FileSystem& fs, const std::string& path, std::string_view text) {
  const auto file = fs.create(path, CreateMode::Exclusive);
  file->write(text);
  file->sync();  // a manifest that names this file must never outlive its bytes
  file->close();
}

constexpr std::array<ErrorKind, 13> kAllKinds{
    ErrorKind::Usage,   ErrorKind::Config,    ErrorKind::BadInput, ErrorKind::Io,      ErrorKind::Corrupt,
    ErrorKind::NoSpace, ErrorKind::Numeric,   ErrorKind::Peer,     ErrorKind::Timeout, ErrorKind::Cuda,
    ErrorKind::InUse,   ErrorKind::Preempted, ErrorKind::Internal};

}  // namespace

TensorPiece TensorPiece::whole(std::string name, DType dtype, std::vector<int64_t> shape) {
  const Box box = Box::whole(shape);
  const int64_t elements = checked_numel(shape, name);
  return {std::move(name), dtype, std::move(shape), box, 0, elements};
}

std::string to_text(const RankPart& part) {
  json files = json::array(), tensors = json::array();
  for (const auto& file : part.files) files.push_back({file.name, file.bytes, file.digest});
  for (const auto& tensor : part.tensors) {
    json slices = json::array();
    for (const auto& s : tensor.slices)
      slices.push_back({s.file, s.offset, s.box.offset, s.box.extent, s.begin, s.end});
    tensors.push_back({tensor.info.name, safetensors_name(tensor.info.dtype), tensor.info.shape, slices});
  }
  return json{files, tensors}.dump();
}

RankPart rank_part_from_text(std::string_view text) {
  const json root = json::parse(text);
  RankPart part;
  for (const auto& f : root[0]) part.files.push_back({f[0], f[1], f[2]});
  for (const auto& t : root[1]) {
    ManifestTensor tensor{{t[0], *dtype_from_safetensors(t[1].get<std::string>()), t[2]}, {}};
    for (const auto& p : t[3]) tensor.slices.push_back({p[0], p[1], {p[2], p[3]}, p[4], p[5]});
    part.tensors.push_back(std::move(tensor));
  }
  return part;
}

bool SaveFailure::retryable() const {
  return kind == ErrorKind::Io || kind == ErrorKind::NoSpace || kind == ErrorKind::Corrupt;
}
std::string to_text(const SaveFailure& failure) {
  return std::string(name(failure.kind)) + ":" + failure.message;
}
SaveFailure save_failure_from_text(std::string_view text) {
  const size_t colon = text.find(':');
  for (const ErrorKind kind : kAllKinds)
    if (name(kind) == text.substr(0, colon)) return {kind, std::string(text.substr(colon + 1))};
  return {ErrorKind::Internal, std::string(text)};
}
SaveFailure failure_of_current_exception() {
  try {
    throw;
  } catch (const Error& error) {
    return {error.kind(), error.message()};
  } catch (const std::bad_alloc&) {
    return {ErrorKind::NoSpace, "out of host memory"};
  } catch (const std::exception& error) {
    return {ErrorKind::Internal, error.what()};
  }
}

std::string rank_file_name(int rank) {
  return fmt::format("rank_{:03}.safetensors", rank);
}

RankPart write_rank_file(FileSystem& fs, const std::string& directory, int rank,
                         const std::vector<TensorPiece>& pieces, const PieceSource& source,
                         FiniteCheck finite_check, const PointHook& at_point) {
  RankPart part;
  std::vector<size_t> order;
  for (size_t i = 0; i < pieces.size(); ++i) {
    check_piece(pieces[i]);
    if (pieces[i].elements() > 0) order.push_back(i);
  }
  // Zero elements: slices without bytes still tell the manifest that the tensor exists, so they need no file.
  for (const auto& piece : pieces)
    if (piece.elements() == 0) part.tensors.push_back({{piece.name, piece.dtype, piece.shape}, {}});
  if (order.empty()) return part;
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) {  // keeps every tensor aligned in the file
                     return size_bytes(pieces[a].dtype) > size_bytes(pieces[b].dtype);
                   });
  std::vector<TensorInfo> stored;
  std::map<std::string, int> used;
  for (const size_t i : order) {
    const int repeat = used[pieces[i].name]++;  // several pieces of one tensor: w, w@1, w@2
    stored.push_back({repeat == 0 ? pieces[i].name : fmt::format("{}@{}", pieces[i].name, repeat),
                      pieces[i].dtype, stored_shape(pieces[i])});
  }
  const std::string file_name = rank_file_name(rank);
  SafetensorsWriter writer(fs, directory + "/" + file_name, CreateMode::Exclusive, stored);
  std::vector<std::byte> buffer;
  for (size_t k = 0; k < order.size(); ++k) {
    const TensorPiece& piece = pieces[order[k]];
    const void* direct = source.direct ? source.direct(order[k]) : nullptr;
    write_piece(writer, piece, direct, source.read, finite_check, buffer);
    part.tensors.push_back({{piece.name, piece.dtype, piece.shape},
                            {{0, writer.entries()[k].offset, piece.box, piece.begin, piece.end}}});
  }
  pass(at_point, "ckpt.shard_written");
  writer.sync();
  writer.close();
  pass(at_point, "ckpt.shard_synced");
  part.files.push_back({file_name, writer.file_bytes(), writer.digest()});
  return part;
}

void write_extra_files(FileSystem& fs, const std::string& directory, const std::string& state_json,
                       const std::vector<ExtraFile>& extra_files, RankPart& part) {
  std::vector<ExtraFile> files{{std::string(kStateName), state_json}};
  files.insert(files.end(), extra_files.begin(), extra_files.end());
  for (const auto& file : files) {
    HEARTH_REQUIRE(is_safe_file_name(file.name) && file.name != kManifestName,
                   "checkpoint: '{}' cannot be a file in it", file.name);
    if (file.name.find('/') != std::string::npos) fs.create_directories(directory + "/tokenizer");
    write_durably(fs, directory + "/" + file.name, file.content);
    part.files.push_back({file.name, static_cast<int64_t>(file.content.size()), xxh3_128_hex(file.content)});
  }
  if (fs.is_directory(directory + "/tokenizer")) fs.sync_directory(directory + "/tokenizer");  // its names
}

Manifest merge_parts(const CheckpointIdentity& identity, int64_t attempt,
                     const std::vector<RankPart>& parts) {
  Manifest manifest;
  manifest.identity = identity;
  manifest.attempt = attempt;
  manifest.world_size = static_cast<int64_t>(parts.size());
  std::map<std::string, ManifestTensor> tensors;
  for (const auto& part : parts) {
    const auto base = static_cast<int64_t>(manifest.files.size());
    manifest.files.insert(manifest.files.end(), part.files.begin(), part.files.end());
    for (const auto& tensor : part.tensors) {
      auto& merged = tensors.try_emplace(tensor.info.name, ManifestTensor{tensor.info, {}}).first->second;
      HEARTH_CHECK(merged.info == tensor.info, Internal, "ranks disagree on dtype or shape of {}: {} and {}",
                   tensor.info.name, shape_text(merged.info.shape), shape_text(tensor.info.shape));
      for (auto slice : tensor.slices) {
        slice.file += base;
        merged.slices.push_back(std::move(slice));
      }
    }
  }
  for (auto& [tensor_name, tensor] : tensors) {
    try {
      require_exact_cover(tensor, "pieces of all ranks");
    } catch (const Error& error) {
      throw Error(ErrorKind::Internal, error.message() + " (please report)");
    }
    manifest.tensors.push_back(std::move(tensor));
  }
  return manifest;
}

void commit_directory(FileSystem& fs, const CommitPlan& plan, const Manifest& manifest) {
  const std::string parent = plan.target.substr(0, plan.target.find_last_of('/'));
  write_durably(fs, plan.temporary + "/" + std::string(kManifestName), serialize(manifest));
  pass(plan.at_point, "ckpt.manifest");
  fs.sync_directory(plan.temporary);  // the names of all files, before the name that makes them count
  if (plan.check_lock) plan.check_lock();
  const bool replaces = fs.exists(plan.target);
  if (replaces) fs.rename(plan.target, plan.aside);
  bool renamed = false;
  try {
    fs.rename(plan.temporary, plan.target);
    renamed = true;
    pass(plan.at_point, "ckpt.renamed");
    fs.sync_directory(
        parent.empty() ? "/" : parent);  // the rename itself: only now may anybody rely on the checkpoint
  } catch (const Error&) {
    if (renamed) fs.rename(plan.target, plan.temporary);
    if (replaces) fs.rename(plan.aside, plan.target);
    throw;
  }
  pass(plan.at_point, "ckpt.parent_synced");
}

void verify_part(FileSystem& fs, const std::string& directory, const RankPart& part) {
  Manifest own;
  own.files = part.files;
  for (const auto& file : own.files) verify_file(fs, directory, own, file);
}

void create_directories_durably(FileSystem& fs, const std::string& path) {
  if (path.empty() || path == "." || path == "/" || fs.is_directory(path)) return;
  const size_t slash = path.find_last_of('/');
  const std::string parent = slash == std::string::npos ? "." : path.substr(0, slash);
  create_directories_durably(fs, parent);
  fs.create_directories(path);
  fs.sync_directory(parent.empty() ? "/" : parent);
}

int64_t planned_bytes(const std::vector<TensorPiece>& pieces) {
  int64_t bytes = 4096;
  for (const auto& piece : pieces) bytes += piece.bytes() + static_cast<int64_t>(piece.name.size()) + 256;
  return bytes;
}

void require_space(FileSystem& fs, const std::string& directory, int64_t bytes) {
  const int64_t available = fs.free_bytes(directory);
  const int64_t needed = bytes + bytes / 10;
  HEARTH_CHECK(available >= needed, NoSpace, "no space: needed {} KiB, free {} KiB in {}", needed / 1024 + 1,
               available / 1024, directory);
}

}  // namespace hearth
