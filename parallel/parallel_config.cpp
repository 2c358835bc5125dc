#include "parallel/parallel_config.h"

namespace hearth {
namespace {
void require_one(ConfigErrors& e, std::string_view key, int64_t value) {
  e.require(value >= 1, key, "must be >= 1, got {}", value);
  e.require(value <= 1, key, "{} is not available yet, only 1 is", value);
}
}  // namespace

void ParallelConfig::validate(ConfigErrors& e) const {
  require_one(e, "tensor_model_parallel_size", tensor_model_parallel_size);
  require_one(e, "pipeline_model_parallel_size", pipeline_model_parallel_size);
  require_one(e, "virtual_pipeline_model_parallel_size", virtual_pipeline_model_parallel_size);
  require_one(e, "context_parallel_size", context_parallel_size);
  require_one(e, "expert_model_parallel_size", expert_model_parallel_size);
  e.one_of(pipeline_schedule, "pipeline_schedule", {"1f1b", "interleaved", "zb_h1", "zbv", "dualpipev"});
  for (const std::string_view schedule : {"interleaved", "zb_h1", "zbv", "dualpipev"})
    e.require(pipeline_schedule != schedule, "pipeline_schedule", "'{}' is not available yet, only 1f1b is",
              schedule);
  e.require(zero_stage >= 0 && zero_stage <= 3, "zero_stage", "must be 0, 1, 2 or 3, got {}", zero_stage);
  e.require(zero_stage != 2 && zero_stage != 3, "zero_stage", "{} is not available yet, only 0 and 1 are",
            zero_stage);
  e.require(bucket_size_mb > 0 && bucket_size_mb <= 4096, "bucket_size_mb", "must be in (0, 4096], got {}",
            bucket_size_mb);
  e.require(collective_timeout_s >= 1 && collective_timeout_s <= 86400, "collective_timeout_s",
            "must be in [1, 86400] seconds, got {}", collective_timeout_s);
}

}  // namespace hearth
