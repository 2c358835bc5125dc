// The scalars of one AdamW step: shared by the launcher and the CPU loop.
#pragma once

namespace hearth::kernels {

// The scalars of a step, each computed in fp64 and rounded once.
struct AdamWScalars {
  float grad_scale;         // multiplies the gradient first
  float decay;              // 1 - lr * weight_decay
  float beta1_rest;         // 1 - beta1
  float beta2, beta2_rest;  // beta2, 1 - beta2
  float eps;
  float negative_step_size;     // -lr / (1 - beta1^step)
  float bias_correction2_sqrt;  // sqrt(1 - beta2^step)
};

}  // namespace hearth::kernels
