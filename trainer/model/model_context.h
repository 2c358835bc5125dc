// What the pieces of a model share with the world around them: other ranks, whoever manages the parameters,
// and whether weight gradients are computed now or later. Borrowed by every graph of a forward pass: outlives
// them. Not thread-safe.
#pragma once

#include <ATen/core/grad_mode.h>

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "parallel/context/context_attention.h"
#include "parallel/tensor/row_collectives.h"
#include "trainer/model/attention_backend.h"
#include "trainer/model/parameter_events.h"

namespace hearth {

// Weight gradients that wait: for their own pipeline action, the split of backward into an input and a weight
// part of zero-bubble schedules (Qi et al. 2023), for the table's (Transformer::defer_first_layer), or for
// the next rows that cross a tensor-parallel group (Transformer::fill_gathers). Run in the order in which
// they were queued.
class WeightGradQueue {
 public:
  void push(std::function<void()> gradient) {
    push({}, [gradient = std::move(gradient)](const at::Tensor&) { gradient(); });
  }
  // With rows that have to be collected from other ranks: that begins while the gradient before this one is
  // computed.
  void push(std::function<PendingRows()> collect, std::function<void(const at::Tensor& rows)> gradient) {
    gradients_.push_back({std::move(collect), std::move(gradient)});
  }
  // The first of them, where there is one.
  void run_one() {
    if (gradients_.empty()) return;
    const at::NoGradGuard no_grad;
    const Gradient gradient = std::move(gradients_.front());
    gradients_.erase(gradients_.begin());
    gradient.compute(gradient.collect ? gradient.collect().wait() : at::Tensor());
  }
  void run() {
    const at::NoGradGuard no_grad;  // what was kept for these gradients belongs to no graph any more
    const auto gradients = std::exchange(gradients_, {});
    const auto collect = [&](size_t i) {
      return i < gradients.size() && gradients[i].collect ? gradients[i].collect()
                                                          : PendingRows(at::Tensor());
    };
    PendingRows next = collect(0);
    for (size_t i = 0; i < gradients.size(); ++i) {
      const at::Tensor rows = next.wait();
      next = collect(i + 1);
      gradients[i].compute(rows);
    }
  }

 private:
  struct Gradient {
    std::function<PendingRows()> collect;  // may be empty
    std::function<void(const at::Tensor&)> compute;
  };
  std::vector<Gradient> gradients_;
};

// The ranks that share each sequence.
struct ContextParallel {
  Comm* comm = nullptr;  // null: this rank has whole sequences
  ContextMethod method = ContextMethod::Ring;
  int64_t size() const { return comm == nullptr ? 1 : comm->size(); }
  int64_t rank() const { return comm == nullptr ? 0 : comm->rank(); }
};

struct ModelContext {
  RowCollectives rows;
  ContextParallel sequence;
  AttentionBackend attention = AttentionBackend::Auto;
  ParameterEvents* events = nullptr;  // never null once a Transformer is made
  bool gradients_travel = false;      // to other ranks, each bucket when it is complete
  // Where weight gradients wait; null: they are computed at once.
  WeightGradQueue* deferred = nullptr;              // of all layers
  WeightGradQueue* first_layer_deferred = nullptr;  // of layer 0
  // Forward cuts a product in two, so that there is something to compute while rows cross the group (Wang et
  // al. 2023: collectives decomposed with the products that depend on them), where a part has so many outputs
  // and so keeps a GPU busy by itself: a tile of cuBLASLt's largest for every multiprocessor of an H100.
  int64_t least_cut = int64_t{132} * 128 * 256;
  // Of the linears whose input needs no gathering: computed while backward gathers rows next. May be null.
  WeightGradQueue* filler = nullptr;
  // Told the residual stream's rows that this rank holds, after "embedding", "layers.N" and "norm"; may be
  // empty.
  std::function<void(const std::string& name, const at::Tensor& rows_nD)> activation_observer;
  bool rebuilding = false;  // a forward pass inside backward (recompute.h)

  WeightGradQueue* queue_of(int64_t unit) const {
    constexpr int64_t kFirstLayer = 1;  // 0 is the table
    return deferred == nullptr && unit == kFirstLayer ? first_layer_deferred : deferred;
  }
  WeightGradQueue* queue_or_filler(int64_t unit) const {
    WeightGradQueue* queue = queue_of(unit);
    return queue != nullptr ? queue : filler;
  }
  // For backward: RowCollectives::gather's rows, with a weight gradient beside the transfer where one waits
  // for that. Rows are gathered right behind a sum and a norm, so that there is nothing else to hide it.
  at::Tensor gathered_beside_filler(const at::Tensor& rows_nD, std::string_view site) const {
    PendingRows all = rows.gather(rows_nD, site);
    if (filler != nullptr) filler->run_one();
    return all.wait();
  }
  // Around a forward use of a unit. What is rebuilt stays for the backward that follows at once.
  void before_forward(int64_t unit) const {
    events->before_use(unit, rebuilding ? UsePhase::Backward : UsePhase::Forward);
  }
  void before_loss(int64_t unit) const { events->before_use(unit, UsePhase::Loss); }
  void after_forward(int64_t unit) const {
    if (!rebuilding) events->after_use(unit, UsePhase::Forward);
  }
};

}  // namespace hearth
