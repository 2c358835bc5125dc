// Read access to named, whole-model tensors by slice, wherever they lie: a checkpoint, an HF directory, a
// GGUF file. Names are HF names. Readers fetch only the bytes they need, so a model larger than one rank's
// memory is normal. Implementations are safe for concurrent reads. Errors: Error{BadInput} (HF, GGUF) or
// Error{Corrupt} (checkpoint).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/dtype.h"

namespace hearth {

struct TensorInfo {
  std::string name;
  DType dtype = DType::F32;    // as stored (quantised GGUF types say F32: they are read dequantised)
  std::vector<int64_t> shape;  // global
  bool operator==(const TensorInfo&) const = default;
  int64_t numel() const {
    int64_t n = 1;
    for (const int64_t extent : shape) n *= extent;
    return n;
  }
};

// A box of a tensor: offset and extent per dimension.
struct Box {
  std::vector<int64_t> offset, extent;
  bool operator==(const Box&) const = default;
  static Box whole(const std::vector<int64_t>& shape) {
    return {std::vector<int64_t>(shape.size(), 0), shape};
  }
};

class TensorSource {
 public:
  virtual ~TensorSource() = default;
  virtual const std::vector<TensorInfo>& tensors() const = 0;
  virtual bool contains(const std::string& name) const = 0;
  virtual const TensorInfo& info(const std::string& name) const = 0;  // throws where it is missing
  // Row-major elements [begin, end) of the flattened tensor, converted to `dtype`, into `out`.
  virtual void read_elements(const std::string& name, int64_t begin, int64_t end, DType dtype,
                             void* out) const = 0;
  // A box, row-major, built on read_elements.
  void read_box(const std::string& name, const Box& box, DType dtype, void* out) const;
  virtual std::string describe() const = 0;  // for messages: path and kind
};

}  // namespace hearth
