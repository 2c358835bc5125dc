// One training step under two layouts, compared: `hearth parity`. Each side runs the same samples from the
// same weights and leaves what does not depend on the layout: activations by (sample, position), the loss,
// gradients by parameter. Collective: every rank of the job calls each function alike. Not thread-safe.
#pragma once

#include <string>
#include <vector>

#include "data/sampler.h"
#include "parallel/bootstrap.h"
#include "trainer/metrics.h"
#include "trainer/parallel_model.h"

namespace hearth {

// Rows of the residual stream, each as four fixed random projections and its squared norm: a few numbers in
// the place of hidden_size, from which the length of a difference is known to some tens of percent, and none
// is missed (Johnson and Lindenstrauss 1984).
struct ActivationSketch {
  std::string name;    // "embedding", "layers.0", ..., "norm"
  at::Tensor rows_N5;  // fp64 on the host, [samples x positions, 5]
};

struct ParitySide {
  std::string layout;
  std::vector<ActivationSketch> activations;  // in forward order
  double loss = 0, grad_norm = 0;
  NamedValues metrics;                // of the objective
  std::vector<StateSlice> gradients;  // this rank's share, on the host, sums over the batch
  double valid_tokens = 0;
};

// Runs one step of `config` on all ranks of the job. Without `others.init_from`: from the initial weights of
// training.seed.
ParitySide run_parity_side(Job& job, const ExperimentConfig& config, const Mesh& mesh, at::Device device,
                           const std::vector<Sample>& samples, const OtherModels& others);

// Writes the mean gradients of everything that is trained (fp32, HF or PEFT-like names) as one safetensors
// file, whose metadata has the loss, the norm and the objective's metrics: for a comparison with another
// program. Rank 0 writes.
void save_gradients(Job& job, FileSystem& fs, const std::string& path, const ParitySide& side,
                    const ExperimentConfig& config, at::Device device);

struct ParityDifference {
  std::string name;       // "activation layers.3", "loss", "gradient model.norm.weight"
  double difference = 0;  // relative: of lengths for activations, max|a - b| / max|b| for gradients
  std::string where;      // "sample 3, position 17", or empty
};

// Everything that was compared, in the order in which a step computes it: activations forward, loss,
// gradients backward.
std::vector<ParityDifference> compare_sides(Job& job, const ParitySide& a, const ParitySide& b,
                                            const ExperimentConfig& config, at::Device device);

// The bound used where the user gives none: ten times what two correct layouts showed in fp32, and eight
// roundings to bf16 (2^-8 each) where the model computes in that.
double parity_tolerance(const PrecisionConfig& precision);

}  // namespace hearth
