#include "trainer/checkpoint/tensor_source.h"

#include "base/error.h"

namespace hearth {

void TensorSource::read_box(const std::string& name, const Box& box, DType dtype, void* out) const {
  const TensorInfo& tensor = info(name);
  const size_t dims = tensor.shape.size();
  HEARTH_REQUIRE(box.offset.size() == dims && box.extent.size() == dims,
                 "{}: box has {} dimensions, tensor has {}", name, box.offset.size(), dims);
  int64_t elements = 1;
  for (size_t d = 0; d < dims; ++d) {
    HEARTH_REQUIRE(
        box.offset[d] >= 0 && box.extent[d] >= 0 && box.offset[d] + box.extent[d] <= tensor.shape[d],
        "{}: box [{}, +{}) leaves dimension {} of extent {}", name, box.offset[d], box.extent[d], d,
        tensor.shape[d]);
    elements *= box.extent[d];
  }
  if (elements == 0) return;
  // The longest run of elements that is contiguous in the tensor: trailing whole dimensions and the one
  // before them.
  size_t split = dims;
  int64_t run = 1;
  while (split > 0) {
    --split;
    run *= box.extent[split];
    if (box.extent[split] != tensor.shape[split]) break;
  }
  std::vector<int64_t> index(split, 0);
  auto* cursor = static_cast<char*>(out);
  for (int64_t done = 0; done < elements; done += run) {
    int64_t begin = 0;
    for (size_t d = 0; d < dims; ++d)
      begin = begin * tensor.shape[d] + box.offset[d] + (d < split ? index[d] : 0);
    read_elements(name, begin, begin + run, dtype, cursor);
    cursor += run * size_bytes(dtype);
    for (size_t d = split; d-- > 0;) {
      if (++index[d] < box.extent[d]) break;
      index[d] = 0;
    }
  }
}

}  // namespace hearth
