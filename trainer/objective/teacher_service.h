// Both ends of a teacher on ranks of its own. A student asks about a micro-batch when it is read and waits
// for the answer at the loss, so the teacher computes while the student does. The teacher reads no data and
// follows no schedule: it answers what it is asked until it is told to stop.
//
// A question is a header (int64: kind and sizes) and its words (int32: the tokens of each sample, then,
// sample by sample, the number of document starts and the starts), both from the asker to all ranks of the
// teacher's replica. An answer is what is kept of the teacher's distribution for every position: ids (int32),
// their log-probabilities (fp32), and the mass of all other ids (fp32). A teacher that several students share
// answers them in turn, which needs as many questions from each: data-parallel ranks train and evaluate on as
// many micro-batches. Not thread-safe.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "base/error.h"
#include "data/sampler.h"
#include "kernels/distillation_op.h"
#include "trainer/interchange/model_source.h"
#include "trainer/loaded_model.h"
#include "trainer/objective/teacher_links.h"

namespace hearth {

// Ids [0, n) that both a teacher and a student with a table of `student_vocab_size` rows know.
int64_t shared_vocabulary(const ModelBundle& teacher, int64_t student_vocab_size);

// Log-probabilities that a teacher on ranks of its own sends of a token.
int64_t sent_logprobs(const ModelBundle& teacher, const ExperimentConfig& config);

class TeacherClient {
 public:
  // On a rank that trains. `links`: at most one.
  TeacherClient(const ExperimentConfig& config, const ModelBundle& teacher,
                const TeacherAssignment& assignment, int rank, std::vector<TeacherLink> links,
                at::Device device);

  // Every rank of a students' replica asks about the same micro-batches in the same order. Returns what waits
  // for the rows of this rank's positions, to be called once, in the order of the questions; null on ranks
  // without the head. Must not outlive the client.
  std::function<kernels::KeptTeacher()> ask(const std::vector<Sample>& samples);

  // The teacher's ranks end with `exit_code`. No question may be open.
  void stop(int exit_code);
  // They end with the same error.
  void fail(const Error& error);

 private:
  struct Question;
  kernels::KeptTeacher receive(Question& question);

  std::vector<TeacherLink> links_;
  at::Device device_;
  int64_t top_k_;
  bool whole_samples_;  // attention does not stop at document borders
  int64_t context_size_, context_rank_;
};

class TeacherServer {
 public:
  // On a rank that serves; collective over `part`, the job of these ranks. Reads this rank's share of the
  // weights under objective.teacher_parallel, in precision.dtype. Throws Error{Config} where the teacher does
  // not fit.
  TeacherServer(Job& part, const ExperimentConfig& config, const ModelBundle& teacher,
                std::vector<TeacherLink> links, at::Device device);

  // Answers until every student has stopped; returns their exit code. Throws the Error with which they
  // failed.
  int run();
  int64_t num_answers() const { return num_answers_; }

 private:
  struct Answer {
    TopLogprobs rows;
    std::array<WorkPtr, 3> works;  // null where this rank does not speak
  };
  bool serve(TeacherLink& link);
  void answer(TeacherLink& link, const ModelInput& input);
  ModelInput read_words(TeacherLink& link, int64_t samples, int64_t sequence, int64_t count);

  std::vector<TeacherLink> links_;
  ModelShare model_;
  int64_t top_k_, vocab_size_;
  double temperature_;
  int exit_code_ = 0;
  int64_t num_answers_ = 0;
  std::deque<Answer> sent_;  // not known to have arrived
};

}  // namespace hearth
