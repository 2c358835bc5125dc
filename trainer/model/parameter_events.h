// What a model tells whoever manages its parameters' memory and gradients (the optimizer). The calls below do
// nothing: good for inference on resident weights. Called on the thread that computes, in the order of use.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/gradient_write.h"

namespace hearth {

enum class UsePhase {
  Forward,
  Loss,  // the head, behind which backward begins
  Backward
};

class ParameterEvents {
 public:
  virtual ~ParameterEvents() = default;
  // Around the use of a unit's weights (ParameterShard::unit). Uses of one unit do not nest.
  virtual void before_use(int64_t /*unit*/, UsePhase /*phase*/) {}
  virtual void after_use(int64_t /*unit*/, UsePhase /*phase*/) {}
  // The unit is likely to be used next: while this rank waits for something else, its weights may come.
  virtual void expect_use(int64_t /*unit*/) {}
  // These parameters are about to get one contribution each, which goes to the whole of every matrix among
  // them: added to its main_grad, or overwriting it, as the answer says. (Vectors are always added to: they
  // are small enough to be cleared.) Nothing may come between the answer and the contribution.
  virtual kernels::GradientWrite before_gradient(const std::vector<int64_t>& /*parameters*/) {
    return kernels::GradientWrite::Add;
  }
  // One finished contribution to the main_grad of each of these parameters.
  virtual void gradient_ready(const std::vector<int64_t>& /*parameters*/) {}
};

// Tells two, in this order; who keeps gradients is the second. Borrows them.
class BothEvents : public ParameterEvents {
 public:
  BothEvents(ParameterEvents& first, ParameterEvents& second) : first_(first), second_(second) {}
  void before_use(int64_t unit, UsePhase phase) override {
    first_.before_use(unit, phase);
    second_.before_use(unit, phase);
  }
  void after_use(int64_t unit, UsePhase phase) override {
    first_.after_use(unit, phase);
    second_.after_use(unit, phase);
  }
  void expect_use(int64_t unit) override {
    first_.expect_use(unit);
    second_.expect_use(unit);
  }
  kernels::GradientWrite before_gradient(const std::vector<int64_t>& parameters) override {
    first_.before_gradient(parameters);
    return second_.before_gradient(parameters);
  }
  void gradient_ready(const std::vector<int64_t>& parameters) override {
    first_.gradient_ready(parameters);
    second_.gradient_ready(parameters);
  }

 private:
  ParameterEvents &first_, &second_;
};

}  // namespace hearth
