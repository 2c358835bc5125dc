#include "parallel/parallel_config.h"

#include "parallel/pipeline/schedule.h"

namespace hearth {
namespace {
void positive(ConfigErrors& e, std::string_view key, int64_t value) {
  e.require(value >= 1, key, "must be >= 1, got {}", value);
}
std::vector<std::string_view> schedule_names() {
  std::vector<std::string_view> names;
  for (const ScheduleKind kind : schedule_kinds()) names.push_back(config_name(kind));
  return names;
}
}  // namespace

void ParallelConfig::validate(ConfigErrors& e) const {
  positive(e, "tensor_model_parallel_size", tensor_model_parallel_size);
  positive(e, "pipeline_model_parallel_size", pipeline_model_parallel_size);
  positive(e, "virtual_pipeline_model_parallel_size", virtual_pipeline_model_parallel_size);
  positive(e, "context_parallel_size", context_parallel_size);
  positive(e, "expert_model_parallel_size", expert_model_parallel_size);
  e.require(expert_model_parallel_size <= 1, "expert_model_parallel_size",
            "{} is not available yet, only 1 is", expert_model_parallel_size);
  e.one_of(pipeline_schedule, "pipeline_schedule", schedule_names());
  e.require(pipeline_schedule == "interleaved" || virtual_pipeline_model_parallel_size == 1,
            "virtual_pipeline_model_parallel_size",
            "has a meaning for pipeline_schedule interleaved only, got {}",
            virtual_pipeline_model_parallel_size);
  e.require(pipeline_schedule != "interleaved" || virtual_pipeline_model_parallel_size >= 2,
            "virtual_pipeline_model_parallel_size", "must be >= 2 for pipeline_schedule interleaved, got {}",
            virtual_pipeline_model_parallel_size);
  for (size_t i = 0; i < pipeline_model_parallel_layout.size(); ++i)
    positive(e, fmt::format("pipeline_model_parallel_layout[{}]", i), pipeline_model_parallel_layout[i]);
  e.one_of(cp_comm_type, "cp_comm_type", {"p2p", "a2a"});
  e.require(zero_stage >= 0 && zero_stage <= 3, "zero_stage", "must be 0, 1, 2 or 3, got {}", zero_stage);
  positive(e, "num_distributed_optimizer_instances", num_distributed_optimizer_instances);
  e.require(zero_stage >= 1 || num_distributed_optimizer_instances == 1,
            "num_distributed_optimizer_instances",
            "has a meaning for zero_stage 1 to 3, which shard something; got {} with zero_stage 0",
            num_distributed_optimizer_instances);
  e.require(bucket_size_mb > 0 && bucket_size_mb <= 4096, "bucket_size_mb", "must be in (0, 4096], got {}",
            bucket_size_mb);
  e.require(collective_timeout_s >= 1 && collective_timeout_s <= 86400, "collective_timeout_s",
            "must be in [1, 86400] seconds, got {}", collective_timeout_s);
}

}  // namespace hearth
