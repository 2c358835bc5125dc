// A model ready to compute: weights from a checkpoint, an HF directory or any other TensorSource, loaded onto
// this rank's device, whole or this rank's share under a layout. What eval, generate and export answer with.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/tokenizer/tokenizer.h"
#include "trainer/inference_model.h"
#include "trainer/interchange/model_source.h"
#include "trainer/parallel_groups.h"

namespace hearth {

// Tensor and pipeline sizes of `layout`, as a training has them. What only a training needs becomes plain:
// one chunk a rank, nothing sharded; the ranks that would share a sequence are replicas like the
// data-parallel ones.
ParallelConfig answering_layout(ParallelConfig layout);
// One copy of the model on all of `ranks`: as many tensor-parallel ranks as its shape takes, the rest
// pipeline stages. Where that cannot be, several copies.
ParallelConfig layout_of_all(const ModelConfig& model, int ranks);

struct ModelShare {
  std::unique_ptr<ParallelGroups> groups;
  std::unique_ptr<ParameterStore> parameters;
  std::unique_ptr<Transformer> transformer;  // this rank's chunk
  std::unique_ptr<PipelineExecutor> executor;
  std::unique_ptr<InferenceModel> inference;

  // Which of the replicas this rank belongs to.
  int replica() const { return groups->coordinate(MeshAxis::Dp); }
  int num_replicas() const { return groups->mesh.size(MeshAxis::Dp); }
  // Of the ranks of a replica, which all get the same results, the one that reports them.
  bool speaks_for_replica() const {
    return groups->coordinate(MeshAxis::Pp) == 0 && groups->coordinate(MeshAxis::Tp) == 0;
  }
};

// Collective over the job. Every rank reads its own slices only. `layout` as answering_layout returns it.
// Throws Error{Config} for a layout that the model or the number of ranks cannot take.
ModelShare load_share(const ModelConfig& model, const TensorSource& tensors, DType dtype, at::Device device,
                      Job& job, const ParallelConfig& layout);

// The MODEL argument of a verb.
struct LoadedModel : ModelShare {
  ModelBundle bundle;

  // Throws Error{BadInput} that says what to do where there is none.
  const Tokenizer& require_tokenizer() const;
  // What ends a generation: the EOS ids of the model's own files.
  std::vector<int32_t> eos_ids() const;
};

// As load_share; computes in `dtype`, or in the stored one.
LoadedModel load_model(ModelBundle bundle, std::optional<DType> dtype, at::Device device, Job& job,
                       const ParallelConfig& layout);

}  // namespace hearth
