// Frozen weights of which the linears of the layers are kept in NF4 (nf4_slices.h): a use restores the memory
// of their bucket and writes the weights into it, in the store's type, and what is behind the use gives it
// back. So one unit is there at a time, and the model computes as with any weights. A rank keeps the codes of
// its slices whole, whatever the ZeRO stage. Not thread-safe. Borrows the store.
#pragma once

#include <vector>

#include "kernels/nf4_op.h"
#include "trainer/model/nf4_slices.h"
#include "trainer/model/parameter_events.h"
#include "trainer/model/parameter_store.h"

namespace hearth {

class QuantizedWeights : public ParameterEvents {
 public:
  // Of a store made with BucketMemory::LayersOnDemand. Throws Error{Config} where slices cut blocks.
  explicit QuantizedWeights(ParameterStore& parameters);
  // Reads each quantised tensor whole, once, a slab at a time: its scales are normalised over all of it. The
  // rest goes into the store.
  void load(const TensorSource& source);

  void before_use(int64_t unit, UsePhase phase) override;
  void after_use(int64_t unit, UsePhase phase) override;

 private:
  void quantize(int64_t parameter, const TensorSource& source);

  ParameterStore& parameters_;
  std::vector<kernels::Nf4Part> parts_;  // by parameter; without codes where it is not quantised
};

}  // namespace hearth
