// Tensors of a PyTorch .bin file (torch.save of a state dict, the zip form of torch >= 1.6), without running
// it. A pickle is a program: this reads it with an interpreter of our own that knows only data (numbers,
// strings, tuples, lists, dicts) and five names: collections.OrderedDict, torch._utils._rebuild_tensor_v2,
// torch._utils._rebuild_parameter, torch.<Type>Storage and the persistent ids of storages. Everything else is
// refused by name. Formats as pickle's and zip's public specifications say.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/file_system.h"
#include "trainer/checkpoint/tensor_source.h"

namespace hearth {

// One tensor of the dict: a row-major part of a storage.
struct PickledTensor {
  TensorInfo info;
  std::string storage;        // name of the archive member below data/
  int64_t storage_numel = 0;  // elements that the pickle says the storage has
  int64_t first = 0;          // element of the storage where the tensor begins
};

// The entries of the dict that `pickle` builds. Bounded time and memory. Throws Error{BadInput} starting with
// `origin`.
std::vector<PickledTensor> read_pickled_tensors(std::string_view pickle, const std::string& origin);

// A .bin file as a source; thread-safe. Errors: Error{BadInput}.
std::unique_ptr<TensorSource> open_torch_file(FileSystem& fs, const std::string& path);

}  // namespace hearth
