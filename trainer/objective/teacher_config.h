// `objective.teacher_parallel`: the layout of a teacher on ranks of its own.
#pragma once

#include <cstdint>

#include "base/config_visit.h"

namespace hearth {

// Replicas fill what is left of objective.teacher_ranks.
struct TeacherLayout {
  int64_t tensor_model_parallel_size = 1, pipeline_model_parallel_size = 1;
  int64_t ranks() const { return tensor_model_parallel_size * pipeline_model_parallel_size; }
  bool operator==(const TeacherLayout&) const = default;
  template <class V>
  void visit(V&& v) {
    v("tensor_model_parallel_size", tensor_model_parallel_size, OnResume::MayChange,
      "ranks that share each layer's matrices of the teacher");
    v("pipeline_model_parallel_size", pipeline_model_parallel_size, OnResume::MayChange,
      "pipeline stages of the teacher");
  }
  void validate(ConfigErrors& e) const {
    const auto size = [&](const char* key, int64_t value) {
      e.require(1 <= value && value <= 65536, key, "must be in [1, 65536], got {}", value);
    };
    size("tensor_model_parallel_size", tensor_model_parallel_size);
    size("pipeline_model_parallel_size", pipeline_model_parallel_size);
  }
};

}  // namespace hearth
