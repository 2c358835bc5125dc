// Runs one rank's list of a pipeline schedule (parallel/pipeline/schedule.h) on the model chunks that the
// rank holds. The list decides everything: this only keeps activations between a forward and its backward,
// posts transfers, and waits for the ones that the next action needs. One stage with one chunk is a schedule
// like any other. Not thread-safe. Borrows the chunks and the links.
#pragma once

#include <ATen/core/Tensor.h>

#include <deque>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "parallel/pipeline/schedule.h"
#include "parallel/side_by_side.h"
#include "trainer/micro_batch.h"
#include "trainer/model/transformer.h"
#include "trainer/parallel_groups.h"

namespace hearth {

class PipelineExecutor {
 public:
  // Gives the next micro-batch of the step, in order; called once for each.
  using NextMicroBatch = std::function<MicroBatch()>;
  // Told before each action, for traces and fault injection; may be empty.
  using Observer = std::function<void(const Action&)>;
  // Loss of a micro-batch from the rows [n, D] behind the final norm, on the rank with the head.
  using HeadLoss =
      std::function<LossResult(Transformer& head, const at::Tensor& hidden_nD, const MicroBatch& batch)>;

  // `chunks[c]`: chunk c of this rank. `schedule` has its transfers (with_transfers). `side_by_side`: by
  // whose turns the chunks wait for other ranks; null: a ForwardBackward runs its two halves one after the
  // other.
  PipelineExecutor(PipelineSchedule schedule, int pipeline_rank, std::vector<Transformer*> chunks,
                   const PipelineLinks& links, SideBySide* side_by_side = nullptr);

  struct Totals {
    at::Tensor sums;           // fp32 [num_sums]: of the losses where this rank has the head, else 0
    int64_t valid_tokens = 0;  // targets of the micro-batches as this rank read them
  };
  // Forward and backward of all micro-batches of a step. Gradients are of the sum of losses. `loss` gives
  // `num_sums` sums.
  Totals run(const NextMicroBatch& next, const HeadLoss& loss, int64_t num_sums, const Observer& observer);
  // Rows through the whole model, without a graph: [n, D] after the final norm where this rank has the head,
  // else undefined. `caches`: one per chunk of this rank, or null. All pipeline ranks call it alike.
  at::Tensor infer(const ModelInput& input, std::vector<KvCache>* caches);
  int head_rank() const { return schedule_.place(schedule_.virtual_stages() - 1).rank; }
  Transformer& head_chunk() const {  // on the head's rank
    return *chunks_[static_cast<size_t>(schedule_.place(schedule_.virtual_stages() - 1).chunk)];
  }

 private:
  using Key = std::pair<int, int>;  // chunk, micro
  struct Activation {
    at::Tensor input;   // leaf; undefined for the chunk with the embedding
    at::Tensor output;  // [n, D], or the loss
    WeightGradQueue deferred;
  };
  struct Transfer {
    at::Tensor tensor;
    WorkPtr work;
  };
  void perform(const Action& action);
  void forward_and_backward(Key forward_key, Key backward_key);
  void forward(Key key);
  void backward(Key key, bool defer);
  void post_send(const Action& action);
  void post_recv(const Action& action);
  at::Tensor take(std::map<Key, Transfer>& from, Key key);
  const MicroBatch& micro_batch(int micro);
  void forget_finished_sends();
  int virtual_stage(int chunk) const { return schedule_.virtual_stage(rank_, chunk); }
  bool is_last(int chunk) const { return virtual_stage(chunk) + 1 == schedule_.virtual_stages(); }
  Comm& link_to(int virtual_stage) const;    // channel to the rank of that virtual stage
  Comm& link_from(int virtual_stage) const;  // channel from it

  PipelineSchedule schedule_;
  int rank_;
  std::vector<Transformer*> chunks_;
  const PipelineLinks& links_;
  SideBySide* side_by_side_;
  // Of the step under way.
  const NextMicroBatch* next_ = nullptr;
  const HeadLoss* loss_ = nullptr;
  Totals totals_;
  int micros_read_ = 0;
  int64_t rows_ = 0;  // of a micro-batch
  std::map<int, MicroBatch> micros_;
  std::map<int, int> micro_uses_left_;
  std::map<Key, Activation> activations_;
  std::map<Key, Transfer> inputs_, gradients_;           // arriving, or handed over by a chunk of this rank
  std::map<Key, at::Tensor> outputs_, input_gradients_;  // made here, waiting for their send
  std::deque<Transfer> sends_;
};

}  // namespace hearth
