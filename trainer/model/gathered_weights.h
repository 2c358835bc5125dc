// Weights that lie split over the data-parallel ranks and are whole around each use: stage 3 of ZeRO
// (Rajbhandari et al. 2020). Of every bucket of a ParameterStore whose memory comes and goes each rank keeps
// an equal part; a use restores the bucket and all-gathers it, one unit ahead, and gives it back behind
// itself. Of the other buckets gather() makes whole what each rank changed of its part, and the next use
// waits for it. All ranks make the same sequence of uses. Not thread-safe. Borrows the store and the
// communicator.
#pragma once

#include <string>
#include <vector>

#include "parallel/comm.h"
#include "trainer/model/parameter_events.h"
#include "trainer/model/parameter_store.h"

namespace hearth {

class GatheredWeights : public ParameterEvents {
 public:
  // The store is cut for as many ranks as `ranks` has. `name` is that of the collectives.
  GatheredWeights(ParameterStore& parameters, Comm& ranks, std::string name);

  void before_use(int64_t unit, UsePhase phase) override;
  void after_use(int64_t unit, UsePhase phase) override;
  void expect_use(int64_t unit) override;

  // This rank's part of a bucket: memory of its own where that of the bucket comes and goes, else a view.
  at::Tensor part(int64_t bucket) const;
  // Copies the part out of a bucket that comes and goes, and whose memory is there.
  void keep_part(int64_t bucket);
  // Starts to make a bucket whole.
  void gather(int64_t bucket);
  // Waits until resident buckets are whole, and gives back what was fetched ahead.
  void finish();

 private:
  int64_t next_use(int64_t unit, UsePhase phase) const;
  ElementRange range(int64_t bucket) const;
  void wait(int64_t bucket);

  ParameterStore& parameters_;
  Comm& ranks_;
  std::string name_;
  std::vector<at::Tensor> parts_;  // by bucket; undefined for resident ones
  std::vector<WorkPtr> pending_;   // by bucket
  int64_t head_unit_ = -1,
          last_layer_unit_ = -1;  // of this rank; the table's unit where the head is tied; -1: no head
};

}  // namespace hearth
