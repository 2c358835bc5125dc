// A job whose last objective.teacher_ranks ranks serve the teacher while the others train.
#pragma once

#include <functional>
#include <optional>

#include "base/log.h"
#include "launch/command.h"
#include "trainer/objective/teacher_service.h"

namespace hearth {

// This rank's part of the job: all of it where no rank is set apart.
class JobPart {
 public:
  // Collective over `whole`, which outlives this.
  JobPart(CommandContext& whole, int64_t teacher_ranks);
  CommandContext& whole() { return whole_; }
  // With the job of this rank's part. Its exit code becomes that of the whole when this ends.
  CommandContext& context() { return own_ ? *own_ : whole_; }
  bool serves() const { return serves_; }
  ~JobPart() { whole_.exit_code = context().exit_code; }
  JobPart(const JobPart&) = delete;
  JobPart& operator=(const JobPart&) = delete;

 private:
  CommandContext& whole_;
  bool serves_ = false;
  std::optional<Job> job_;
  std::optional<CommandContext> own_;
};

// Runs `train` on the ranks that train, with the way to the teacher, null where it has no ranks of its own;
// serves on the others until training ends. Errors of either side become errors of all. Collective over the
// whole job.
void with_teacher(JobPart& part, const ExperimentConfig& config, const Mesh& students,
                  const ModelBundle* teacher, at::Device device, Log& log,
                  const std::function<void(TeacherClient*)>& train);

}  // namespace hearth
