// What verbs that compute with an experiment file share: its datasets, what the file leaves to be found
// elsewhere, the weights to start from, and this rank's device.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "base/log.h"
#include "data/sampler.h"
#include "data/teacher_cache.h"
#include "launch/command.h"
#include "launch/config_parser.h"
#include "parallel/placement.h"
#include "trainer/interchange/model_source.h"

namespace hearth {

struct ExperimentData {
  std::vector<WeightedDataset> train;
  std::vector<std::unique_ptr<Dataset>> validation, old_validation;
  std::string digest, text;  // of the training data: identity, and for people
  std::string missing;       // first folder that is not there; only where that is allowed
};

enum class MissingData { Refuse, Allow };

// The training data is data.train and, with its share of the weight, objective.incremental.replay.
ExperimentData open_data(FileSystem& fs, const ExperimentConfig& config, MissingData missing);
// Throws Error{BadInput} for datasets of different tokenizers.
void require_one_tokenizer(const ExperimentData& data);

// Fills in what the experiment file leaves to be found elsewhere: the shape of init_from, the tokenizer's
// size. Returns the opened init_from, which is verified once and loaded later; null where there is none
// (yet).
std::unique_ptr<ModelBundle> complete_config(LoadedConfig& loaded, const ExperimentData& data,
                                             CommandContext& context, Log& log);
// The weights that a fresh run starts from, `bundle` where complete_config opened them; null where nothing
// names them.
std::unique_ptr<ModelBundle> initial_weights(const LoadedConfig& loaded, const ExperimentData& data,
                                             std::unique_ptr<ModelBundle> bundle, CommandContext& context,
                                             Log& log);

// Throws Error{BadInput} where an objective cannot use the data: pairs are for dpo alone, sft needs
// conversations.
void require_data_of_objective(const ExperimentConfig& config, const ExperimentData& data);
// Throws Error{BadInput} that explains where the ids of a teacher's tokenizer mean other tokens than the
// dataset's; padding at the end of the larger one may differ.
void require_same_tokens(const Tokenizer& teacher, const std::string& origin, const Dataset& dataset,
                         FileSystem& fs);
// The model of objective.teacher; null where there is none. Throws Error{BadInput} for a teacher with other
// tokens than the data.
std::unique_ptr<ModelBundle> open_teacher(const LoadedConfig& loaded, const ExperimentData& data,
                                          CommandContext& context, Log& log);

// Its shape, for estimates; empty where there is none, or none yet, or where it has ranks of its own.
std::optional<ModelConfig> teacher_shape(const LoadedConfig& loaded, CommandContext& context, Log& log);

// The cache of objective.teacher_cache; null where there is none. Throws Error{BadInput} unless it is of the
// data's tokenizer and has every training shard.
std::unique_ptr<TeacherCache> open_teacher_cache(const LoadedConfig& loaded, const ExperimentData& data,
                                                 CommandContext& context);

// Takes --device auto, cpu or cuda. The first call of CUDA in the process: environment variables that the
// layout needs are set before it. Sets the threads that compute too and returns the device. Afterwards and
// before the first communicator, share_device() tells NCCL where several ranks have one.
struct ComputePlace {
  at::Device device = at::kCPU;
  int threads = 1;
};
ComputePlace take_device(const std::string& choice, const std::vector<MeshPart>& parts,
                         CommandContext& context);
ComputePlace take_device(const std::string& choice, const Mesh& mesh, CommandContext& context);
void share_device(CommandContext& context, at::Device device, Log& log);

}  // namespace hearth
