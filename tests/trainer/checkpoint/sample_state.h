// A small model state that every test can make, shard over any number of ranks, save, and check element by
// element.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "trainer/checkpoint/checkpoint_reader.h"
#include "trainer/checkpoint/checkpoint_saver.h"

namespace hearth::sample {

inline std::vector<TensorInfo> flat_tensors() {  // sharded as one flat run of elements, as ZeRO does
  return {{"model.embed", DType::F32, {13, 8}},
          {"model.norm", DType::BF16, {9}},
          {"model.w", DType::F32, {24, 11}},
          {"optimizer.exp_avg.model.w", DType::F32, {24, 11}},
          {"optimizer.exp_avg.scale", DType::F32, {}}};
}
inline std::vector<TensorInfo> column_tensors() {  // sharded by columns, as tensor parallelism does
  return {{"model.down_proj", DType::F32, {6, 20}}, {"model.qkv", DType::BF16, {3, 20, 4}}};
}

// The value of element `index` at `step`: a small integer, exact in every type.
inline float value(const std::string& name, int64_t index, int64_t step) {
  const std::string key = name + ":" + std::to_string(index) + ":" + std::to_string(step);
  return static_cast<float>(xxh3_64(key) % 255) - 127.f;
}

// What rank `rank` of `world` holds.
inline std::vector<TensorPiece> pieces(int rank, int world) {
  std::vector<TensorPiece> out;
  int64_t total = 0;
  for (const auto& t : flat_tensors()) total += t.numel();
  const int64_t begin = total * rank / world, end = total * (rank + 1) / world;
  int64_t at = 0;
  for (const auto& t : flat_tensors()) {
    auto piece = TensorPiece::whole(t.name, t.dtype, t.shape);
    piece.begin = std::clamp<int64_t>(begin - at, 0, t.numel());
    piece.end = std::clamp<int64_t>(end - at, 0, t.numel());
    if (piece.begin < piece.end) out.push_back(piece);
    at += t.numel();
  }
  for (const auto& t : column_tensors()) {
    auto piece = TensorPiece::whole(t.name, t.dtype, t.shape);
    piece.box.offset[1] = t.shape[1] * rank / world;
    piece.box.extent[1] = t.shape[1] * (rank + 1) / world - piece.box.offset[1];
    piece.begin = 0;
    piece.end = 1;
    for (const int64_t extent : piece.box.extent) piece.end *= extent;
    if (piece.end > 0) out.push_back(piece);
  }
  if (rank == 0) out.push_back(TensorPiece::whole("model.empty", DType::F32, {0, 4}));
  return out;
}

// Writes the values of `piece` elements [first, first + count) at `step`.
inline void fill(const TensorPiece& piece, int64_t first, int64_t count, int64_t step, void* out) {
  std::vector<float> values;
  const size_t dims = piece.shape.size();
  for (int64_t e = piece.begin + first; e < piece.begin + first + count; ++e) {
    int64_t rest = e, index = 0, stride = 1;
    for (size_t d = dims; d-- > 0;) {
      index += (piece.box.offset[d] + rest % piece.box.extent[d]) * stride;
      rest /= piece.box.extent[d];
      stride *= piece.shape[d];
    }
    values.push_back(value(piece.name, index, step));
  }
  convert(DType::F32, values.data(), piece.dtype, out, count);
}

inline CheckpointIdentity identity(int64_t step) {
  return {step, "dp=1", "c0ffee", "da7a", "70ce4"};
}

// Begins a save of `step`; false where the saver refused it.
inline bool begin_save(CheckpointSaver& saver, ControlPlane& control, int64_t step) {
  Snapshot* snapshot = saver.begin(identity(step), pieces(control.rank(), control.world_size()));
  if (snapshot == nullptr) return false;
  for (size_t i = 0; i < snapshot->pieces().size(); ++i)
    fill(snapshot->pieces()[i], 0, snapshot->pieces()[i].elements(), step, snapshot->data(i));
  saver.commit_async("{\"step\": " + std::to_string(step) + "}",
                     {{"tokenizer/tokenizer.json", "{\"tok\": 1}"}, {"config.json", "{}"}});
  return true;
}
inline void save(CheckpointSaver& saver, ControlPlane& control, int64_t step) {
  if (begin_save(saver, control, step)) saver.wait();
}

// The first difference between the checkpoint and what was saved at its step, read as `world` ranks would; ""
// for none.
inline std::string difference(const CheckpointReader& reader, int world = 1) {
  const int64_t step = reader.step();
  auto all = flat_tensors();
  for (const auto& t : column_tensors()) all.push_back(t);
  for (const auto& t : all) {
    if (!reader.contains(t.name)) return t.name + " is missing";
    if (!(reader.info(t.name) == t)) return t.name + " has another dtype or shape";
    for (int rank = 0; rank < world; ++rank) {
      const int64_t begin = t.numel() * rank / world, end = t.numel() * (rank + 1) / world;
      std::vector<float> got(static_cast<size_t>(end - begin));
      reader.read_elements(t.name, begin, end, DType::F32, got.data());
      for (int64_t i = begin; i < end; ++i)
        if (got[static_cast<size_t>(i - begin)] != value(t.name, i, step))
          return fmt::format("{}[{}] is {}, saved {}", t.name, i, got[static_cast<size_t>(i - begin)],
                             value(t.name, i, step));
    }
    // The same by columns, which is how a tensor-parallel rank of another layout reads.
    if (t.shape.size() < 2) continue;
    for (int rank = 0; rank < world; ++rank) {
      Box box = Box::whole(t.shape);
      box.offset[1] = t.shape[1] * rank / world;
      box.extent[1] = t.shape[1] * (rank + 1) / world - box.offset[1];
      TensorPiece piece{t.name, DType::F32, t.shape, box, 0, 1};
      for (const int64_t extent : box.extent) piece.end *= extent;
      std::vector<float> got(static_cast<size_t>(piece.end)), want(got.size());
      reader.read_box(t.name, box, DType::F32, got.data());
      if (piece.end > 0) fill(piece, 0, piece.end, step, want.data());
      if (got != want) return t.name + " differs when read by columns";
    }
  }
  if (reader.info("model.empty").numel() != 0) return "model.empty is not empty";
  if (reader.state_json() != "{\"step\": " + std::to_string(step) + "}") return "state.json differs";
  if (reader.read_file("tokenizer/tokenizer.json") != "{\"tok\": 1}") return "tokenizer.json differs";
  return "";
}

inline CheckpointSaverOptions options(const std::string& run_folder) {
  CheckpointSaverOptions out;
  out.folder = run_folder + "/checkpoints";
  return out;
}

}  // namespace hearth::sample
