#include "launch/commands/teacher_ranks.h"

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace hearth {
namespace {

// How long a student that fails waits to see whether all students do.
constexpr double kMeetingS = 2.0;

// An error of some ranks becomes that of all, so that it is printed once and nobody waits for who has it.
void share_error(ControlPlane& control, const std::optional<Error>& mine) {
  nlohmann::json text;
  if (mine) text = {{"kind", mine->kind()}, {"message", mine->message()}};
  for (const auto& answer : control.all_gather(text.dump(), "teacher.ready"))
    if (const auto theirs = nlohmann::json::parse(answer); !theirs.is_null())
      throw Error(theirs.at("kind").get<ErrorKind>(), theirs.at("message").get<std::string>());
}

void serve(JobPart& part, const ExperimentConfig& config, const ModelBundle& teacher,
           std::vector<TeacherLink> links, at::Device device, Log& log) {
  std::optional<TeacherServer> server;
  std::optional<Error> trouble;
  try {
    server.emplace(part.context().job, config, teacher, std::move(links), device);
  } catch (const Error& error) {
    trouble = error;
  }
  share_error(*part.whole().job.control, trouble);
  part.context().exit_code = server->run();
  log.info("event=teacher_end answers={}", server->num_answers());
}

}  // namespace

JobPart::JobPart(CommandContext& whole, int64_t teacher_ranks) : whole_(whole) {
  if (teacher_ranks == 0) return;
  const ControlPlane& control = *whole.job.control;
  const auto serving = checked_cast<int>(teacher_ranks), training = control.world_size() - serving;
  serves_ = control.rank() >= training;
  job_ = serves_ ? split_job(whole.job, "teacher", training, serving)
                 : split_job(whole.job, "students", 0, training);
  own_.emplace(CommandContext{whole.fs, whole.environment, *job_, whole.exit_code});
}

void with_teacher(JobPart& part, const ExperimentConfig& config, const Mesh& students,
                  const ModelBundle* teacher, at::Device device, Log& log,
                  const std::function<void(TeacherClient*)>& train) {
  if (config.objective.teacher_ranks == 0) return train(nullptr);
  Job& job = part.whole().job;
  const auto assignment = TeacherAssignment::from_config(config, students);
  log.info("event=teacher_ranks training=\"{}\" teacher=\"{}\" model=\"{}\" logprobs={}", students.describe(),
           assignment.teacher.describe(), teacher->origin, sent_logprobs(*teacher, config));
  auto links = make_teacher_links(job, assignment, device);
  if (part.serves()) return serve(part, config, *teacher, std::move(links), device, log);
  TeacherClient client(config, *teacher, assignment, job.control->rank(), std::move(links), device);
  share_error(*job.control, std::nullopt);
  try {
    train(&client);
  } catch (const Error& error) {
    // Of an error that all students have the teacher hears too: then the job ends like one that failed as a
    // whole.
    if (part.context().job.control->meet_after_error(error.what(), kMeetingS).all_failed) client.fail(error);
    throw;
  }
  client.stop(part.context().exit_code);
}

}  // namespace hearth
