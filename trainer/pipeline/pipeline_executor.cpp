#include "trainer/pipeline/pipeline_executor.h"

#include <ATen/ThreadLocalState.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/record_function.h>
#include <fmt/core.h>

#include "base/error.h"

namespace hearth {
namespace {

std::string site(const char* what, int virtual_stage, int micro) {
  return fmt::format("pp.{}.stage{}.micro{}", what, virtual_stage, micro);
}

}  // namespace

PipelineExecutor::PipelineExecutor(PipelineSchedule schedule, int pipeline_rank,
                                   std::vector<Transformer*> chunks, const PipelineLinks& links,
                                   SideBySide* side_by_side)
    : schedule_(std::move(schedule)),
      rank_(pipeline_rank),
      chunks_(std::move(chunks)),
      links_(links),
      side_by_side_(side_by_side) {
  HEARTH_REQUIRE(static_cast<int>(chunks_.size()) == schedule_.chunks,
                 "schedule of {} chunks a rank, {} given", schedule_.chunks, chunks_.size());
}

Comm& PipelineExecutor::link_to(int stage) const {
  return links_.link(rank_, schedule_.place(stage).rank);
}
Comm& PipelineExecutor::link_from(int stage) const {
  return links_.link(schedule_.place(stage).rank, rank_);
}

const MicroBatch& PipelineExecutor::micro_batch(int micro) {
  while (micros_read_ <= micro) {
    const MicroBatch& batch = micros_.emplace(micros_read_, (*next_)()).first->second;
    micro_uses_left_[micros_read_] = schedule_.chunks;
    totals_.valid_tokens += batch.valid_targets;
    rows_ = batch.input.rows();
    ++micros_read_;
  }
  return micros_.at(micro);
}

PipelineExecutor::Totals PipelineExecutor::run(const NextMicroBatch& next, const HeadLoss& loss,
                                               int64_t num_sums, const Observer& observer) {
  next_ = &next;
  loss_ = &loss;
  micros_read_ = 0;
  totals_ = {at::zeros({num_sums}, at::TensorOptions(chunks_[0]->device()).dtype(at::kFloat)), 0};
  for (const Action& action : schedule_.ranks[static_cast<size_t>(rank_)]) {
    if (observer) observer(action);
    RECORD_USER_SCOPE(describe(action));  // in a trace; nothing otherwise
    perform(action);
    forget_finished_sends();
  }
  for (Transfer& send : sends_) send.work->wait();
  sends_.clear();
  HEARTH_ASSERT(activations_.empty() && inputs_.empty() && gradients_.empty() && outputs_.empty() &&
                input_gradients_.empty() && micros_.empty());
  return std::move(totals_);
}

void PipelineExecutor::perform(const Action& action) {
  const Key key{action.chunk, action.micro};
  switch (action.kind) {
    case ActionKind::Forward:
      return forward(key);
    case ActionKind::Backward:
      return backward(key, /*defer=*/false);
    case ActionKind::BackwardInput:
      return backward(key, /*defer=*/true);
    case ActionKind::BackwardWeight:
      activations_.at(key).deferred.run();
      activations_.erase(key);
      return;
    case ActionKind::ForwardBackward:
      return forward_and_backward(key, {action.backward_chunk, action.backward_micro});
    case ActionKind::SendForward:
    case ActionKind::SendBackward:
      return post_send(action);
    case ActionKind::RecvForward:
    case ActionKind::RecvBackward:
      return post_recv(action);
  }
}

// What the halves change belongs to different micro-batches and chunks. Autograd may run the backward on a
// thread of its own; what this thread has set up for itself (a profiler, say) goes along to the forward's.
void PipelineExecutor::forward_and_backward(Key forward_key, Key backward_key) {
  if (side_by_side_ == nullptr) {
    forward(forward_key);
    return backward(backward_key, /*defer=*/false);
  }
  const at::ThreadLocalState state;
  side_by_side_->run(
      [&] {
        const at::ThreadLocalStateGuard guard(state);
        forward(forward_key);
      },
      [&] { backward(backward_key, /*defer=*/false); });
}

// Waits for a tensor that arrives, or was handed over on this rank.
at::Tensor PipelineExecutor::take(std::map<Key, Transfer>& from, Key key) {
  auto node = from.extract(key);
  HEARTH_ASSERT(!node.empty());
  if (node.mapped().work != nullptr) node.mapped().work->wait();
  return node.mapped().tensor;
}

void PipelineExecutor::forward(Key key) {
  const auto [chunk, micro] = key;
  Transformer& model = *chunks_[static_cast<size_t>(chunk)];
  const MicroBatch& batch = micro_batch(micro);
  Activation& activation = activations_[key];
  model.expect_forward();
  if (!model.chunk().embedding) activation.input = take(inputs_, key).detach().requires_grad_(true);
  at::Tensor out = model.forward(activation.input, batch.input);
  if (is_last(chunk)) {
    // The division by the global count of valid tokens happens once, in the update.
    const LossResult loss = (*loss_)(model, out, batch);
    totals_.sums.add_(loss.sums.detach());
    activation.output = loss.loss;
  } else {
    activation.output = out;
    const auto next = schedule_.place(virtual_stage(chunk) + 1);
    if (next.rank == rank_) {
      inputs_[{next.chunk, micro}] = {out.detach(), nullptr};
    } else {
      outputs_[key] = out.detach();
    }
  }
  if (--micro_uses_left_[micro] == 0) {
    micros_.erase(micro);
    micro_uses_left_.erase(micro);
  }
}

void PipelineExecutor::backward(Key key, bool defer) {
  const auto [chunk, micro] = key;
  Transformer& model = *chunks_[static_cast<size_t>(chunk)];
  Activation& activation = activations_.at(key);
  if (defer) {
    model.defer_weight_gradients(&activation.deferred);
  } else {
    model.defer_first_layer(&activation.deferred);
  }
  WeightGradQueue filler;
  model.fill_gathers(&filler);
  model.expect_backward();
  if (is_last(chunk)) {
    activation.output.backward();
  } else {
    activation.output.backward(take(gradients_, key));
  }
  model.defer_weight_gradients(nullptr);
  model.defer_first_layer(nullptr);
  model.fill_gathers(nullptr);
  activation.output.reset();  // the graph and all that it kept
  filler.run();
  if (!defer) activation.deferred.run();
  if (activation.input.defined()) {
    const at::Tensor gradient = activation.input.grad().contiguous();
    activation.input.reset();
    const auto previous = schedule_.place(virtual_stage(chunk) - 1);
    if (previous.rank == rank_) {
      gradients_[{previous.chunk, micro}] = {gradient, nullptr};
    } else {
      input_gradients_[key] = gradient;
    }
  }
  if (!defer) activations_.erase(key);
}

void PipelineExecutor::post_send(const Action& action) {
  const bool activations = action.kind == ActionKind::SendForward;
  auto node = (activations ? outputs_ : input_gradients_).extract({action.chunk, action.micro});
  HEARTH_ASSERT(!node.empty());
  const at::Tensor tensor = node.mapped().contiguous();
  const int stage = virtual_stage(action.chunk), target = activations ? stage + 1 : stage - 1;
  sends_.push_back(
      {tensor, link_to(target).send(tensor.data_ptr(), tensor.numel(), dtype_of(tensor), /*peer=*/1,
                                    site(activations ? "activation" : "gradient", target, action.micro))});
}

void PipelineExecutor::post_recv(const Action& action) {
  const bool activations = action.kind == ActionKind::RecvForward;
  const Transformer& model = *chunks_[static_cast<size_t>(action.chunk)];
  const int stage = virtual_stage(action.chunk), source = activations ? stage - 1 : stage + 1;
  if (micros_read_ == 0) micro_batch(0);  // all micro-batches of a step have one shape
  at::Tensor tensor = at::empty({model.local_rows(rows_), model.config().hidden_size},
                                at::TensorOptions(model.device()).dtype(model.scalar_type()));
  WorkPtr work = link_from(source).recv(tensor.data_ptr(), tensor.numel(), dtype_of(tensor), /*peer=*/0,
                                        site(activations ? "activation" : "gradient", stage, action.micro));
  (activations ? inputs_ : gradients_)[{action.chunk, action.micro}] = {std::move(tensor), std::move(work)};
}

void PipelineExecutor::forget_finished_sends() {
  while (!sends_.empty() && sends_.front().work->poll()) sends_.pop_front();
}

// The rows go through all virtual stages in order; each rank does its part when its turn comes.
at::Tensor PipelineExecutor::infer(const ModelInput& input, std::vector<KvCache>* caches) {
  at::Tensor x;
  for (int stage = 0; stage < schedule_.virtual_stages(); ++stage) {
    const auto place = schedule_.place(stage);
    if (place.rank != rank_) continue;
    const auto chunk = static_cast<size_t>(place.chunk);
    Transformer& model = *chunks_[chunk];
    if (stage > 0 && schedule_.place(stage - 1).rank != rank_) {
      x = at::empty({model.local_rows(input.rows()), model.config().hidden_size},
                    at::TensorOptions(model.device()).dtype(model.scalar_type()));
      link_from(stage - 1)
          .recv(x.data_ptr(), x.numel(), dtype_of(x), /*peer=*/0, site("infer", stage, 0))
          ->wait();
    }
    x = model.forward(x, input, caches == nullptr ? nullptr : &(*caches)[chunk]);
    if (stage + 1 < schedule_.virtual_stages() && schedule_.place(stage + 1).rank != rank_) {
      x = x.contiguous();
      link_to(stage + 1)
          .send(x.data_ptr(), x.numel(), dtype_of(x), /*peer=*/1, site("infer", stage + 1, 0))
          ->wait();
    }
  }
  return head_rank() == rank_ ? x : at::Tensor();
}

}  // namespace hearth
