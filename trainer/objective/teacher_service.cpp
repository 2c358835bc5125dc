#include "trainer/objective/teacher_service.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <string>

#include "parallel/context/context_attention.h"
#include "parallel/tensor/upload.h"
#include "trainer/model/attention.h"
#include "trainer/objective/frozen_model.h"

namespace hearth {
namespace {

enum class Kind : int64_t { Rows, Stop, Failure };

struct Header {
  Kind kind = Kind::Rows;
  int64_t samples = 0, sequence = 0;  // of Rows
  int64_t words = 0;                  // of Rows: words that follow; of Failure: bytes of text
  int64_t code = 0;                   // of Stop: exit code; of Failure: ErrorKind
};
constexpr int64_t kHeaderWords = sizeof(Header) / sizeof(int64_t);

WorkPtr share_header(Comm& questions, Header& header) {
  return questions.broadcast(&header, kHeaderWords, DType::I64, /*root=*/0, "kd.question");
}

// Who answers fills the rows, who asked receives them.
std::array<WorkPtr, 3> share_rows(Comm& answers, const TopLogprobs& rows) {
  const auto share = [&](const at::Tensor& values, DType dtype, const char* site) {
    return answers.broadcast(values.data_ptr(), values.numel(), dtype, /*root=*/0, site);
  };
  return {share(rows.ids_NK, DType::I32, "kd.ids"), share(rows.logprobs_NK, DType::F32, "kd.logprobs"),
          share(rows.tail_mass_N, DType::F32, "kd.tail")};
}

// A training's layout in which the teacher alone is asked.
ParallelConfig serving_layout(const ExperimentConfig& config) {
  ParallelConfig layout = answering_layout(config.parallel);
  layout.tensor_model_parallel_size = config.objective.teacher_parallel.tensor_model_parallel_size;
  layout.pipeline_model_parallel_size = config.objective.teacher_parallel.pipeline_model_parallel_size;
  layout.pipeline_model_parallel_layout.clear();
  return layout;
}

ModelShare load_teacher(Job& part, const ExperimentConfig& config, const ModelBundle& teacher,
                        at::Device device) {
  // Tokens that only the student knows are rows of zeros to the teacher, as where both share ranks.
  ModelConfig shape = teacher.config;
  shape.vocab_size = config.model.vocab_size;
  const ResizedVocabulary tensors(*teacher.tensors, teacher.config, shape.vocab_size);
  return load_share(shape, tensors, dtype_from_config(config.precision.dtype).value(), device, part,
                    serving_layout(config));
}

}  // namespace

int64_t shared_vocabulary(const ModelBundle& teacher, int64_t student_vocab_size) {
  const int64_t smaller = std::min(teacher.config.vocab_size, student_vocab_size);
  return teacher.tokenizer ? std::min(smaller, teacher.tokenizer->vocab_size()) : smaller;
}

int64_t sent_logprobs(const ModelBundle& teacher, const ExperimentConfig& config) {
  return std::min(config.objective.teacher_top_k, shared_vocabulary(teacher, config.model.vocab_size));
}

// What travels must stay where it is until it has arrived.
struct TeacherClient::Question {
  Header header;
  std::vector<int32_t> words;
  std::array<WorkPtr, 2> works;  // null on ranks that do not ask
};

TeacherClient::TeacherClient(const ExperimentConfig& config, const ModelBundle& teacher,
                             const TeacherAssignment& assignment, int rank, std::vector<TeacherLink> links,
                             at::Device device)
    : links_(std::move(links)),
      device_(device),
      top_k_(sent_logprobs(teacher, config)),
      whole_samples_(!config.data.reset_attention_mask),
      context_size_(assignment.students.size(MeshAxis::Cp)),
      context_rank_(assignment.students.coordinate(rank, MeshAxis::Cp)) {
  HEARTH_ASSERT(links_.size() <= 1);
}

std::function<kernels::KeptTeacher()> TeacherClient::ask(const std::vector<Sample>& samples) {
  if (links_.empty()) return nullptr;
  auto question = std::make_shared<Question>();
  const size_t sequence = samples[0].loss_mask.size();
  std::vector<int32_t> starts;
  for (const Sample& sample : samples) {
    question->words.insert(question->words.end(), sample.tokens.begin(),
                           sample.tokens.begin() + static_cast<int64_t>(sequence));
    const auto& own = whole_samples_ ? std::vector<int32_t>{0} : sample.document_starts;
    starts.push_back(checked_cast<int32_t>(own.size()));
    starts.insert(starts.end(), own.begin(), own.end());
  }
  question->words.insert(question->words.end(), starts.begin(), starts.end());
  const auto count = static_cast<int64_t>(question->words.size());
  question->header = {.kind = Kind::Rows,
                      .samples = static_cast<int64_t>(samples.size()),
                      .sequence = static_cast<int64_t>(sequence),
                      .words = count};
  if (Comm* questions = links_[0].questions.get())
    question->works = {
        share_header(*questions, question->header),
        questions->broadcast(question->words.data(), count, DType::I32, /*root=*/0, "kd.words")};
  return [this, question] { return receive(*question); };
}

kernels::KeptTeacher TeacherClient::receive(Question& question) {
  // First: a device that waits for the answer must not keep this rank from handing over the question.
  for (const WorkPtr& work : question.works)
    if (work) work->wait();
  const int64_t samples = question.header.samples, sequence = question.header.sequence;
  const int64_t rows = samples * sequence;
  const auto options = at::TensorOptions(device_);
  TopLogprobs top{at::empty({rows, top_k_}, options.dtype(at::kInt)),
                  at::empty({rows, top_k_}, options.dtype(at::kFloat)),
                  at::empty({rows}, options.dtype(at::kFloat))};
  for (const WorkPtr& work : share_rows(*links_[0].answers, top)) work->wait();
  if (context_size_ > 1) {
    const auto positions = context_positions(sequence, context_size_, context_rank_);
    std::vector<int64_t> mine;
    for (int64_t sample = 0; sample < samples; ++sample)
      for (const int64_t position : positions) mine.push_back(sample * sequence + position);
    const at::Tensor index = upload(mine, device_);
    top = {top.ids_NK.index_select(0, index), top.logprobs_NK.index_select(0, index),
           top.tail_mass_N.index_select(0, index)};
  }
  return {top.ids_NK.to(at::kLong), top.logprobs_NK, top.tail_mass_N};
}

void TeacherClient::stop(int exit_code) {
  if (links_.empty() || !links_[0].questions) return;
  Header header{.kind = Kind::Stop, .code = exit_code};
  share_header(*links_[0].questions, header)->wait();
}

void TeacherClient::fail(const Error& error) {
  if (links_.empty() || !links_[0].questions) return;
  std::string text = error.message();
  Header header{.kind = Kind::Failure,
                .words = static_cast<int64_t>(text.size()),
                .code = static_cast<int64_t>(error.kind())};
  Comm& questions = *links_[0].questions;
  share_header(questions, header)->wait();
  questions.broadcast(text.data(), header.words, DType::U8, /*root=*/0, "kd.failure")->wait();
}

TeacherServer::TeacherServer(Job& part, const ExperimentConfig& config, const ModelBundle& teacher,
                             std::vector<TeacherLink> links, at::Device device)
    : links_(std::move(links)),
      model_(load_teacher(part, config, teacher, device)),
      top_k_(sent_logprobs(teacher, config)),
      vocab_size_(shared_vocabulary(teacher, config.model.vocab_size)),
      temperature_(config.objective.logit_kl_temperature) {}

int TeacherServer::run() {
  size_t stopped = 0;
  while (stopped == 0) {
    for (TeacherLink& link : links_)
      if (!serve(link)) ++stopped;
    HEARTH_ASSERT(stopped == 0 || stopped == links_.size());  // each has asked as often as the others
  }
  return exit_code_;
}

// False: the student has stopped.
bool TeacherServer::serve(TeacherLink& link) {
  Header header;
  share_header(*link.questions, header)->wait();
  switch (header.kind) {
    case Kind::Rows:
      answer(link, read_words(link, header.samples, header.sequence, header.words));
      return true;
    case Kind::Stop:
      exit_code_ = checked_cast<int>(header.code);
      return false;
    default: {
      std::string text(static_cast<size_t>(header.words), '\0');
      link.questions->broadcast(text.data(), header.words, DType::U8, /*root=*/0, "kd.failure")->wait();
      throw Error(static_cast<ErrorKind>(header.code), std::move(text));
    }
  }
}

ModelInput TeacherServer::read_words(TeacherLink& link, int64_t samples, int64_t sequence, int64_t count) {
  std::vector<int32_t> words(static_cast<size_t>(count));
  link.questions->broadcast(words.data(), count, DType::I32, /*root=*/0, "kd.words")->wait();
  std::vector<std::vector<int32_t>> document_starts;
  auto at = words.begin() + samples * sequence;
  for (int64_t sample = 0; sample < samples; ++sample) {
    const int32_t starts = *at++;
    document_starts.emplace_back(at, at + starts);
    at += starts;
  }
  words.resize(static_cast<size_t>(samples * sequence));
  const Transformer& model = *model_.transformer;
  ModelInput input;
  input.ids_N = upload(words, model.device()).to(at::kLong);
  input.layout = make_attention_layout(document_starts, sequence, model.attention_target());
  return input;
}

void TeacherServer::answer(TeacherLink& link, const ModelInput& input) {
  const auto arrived = [](const Answer& answer) {
    return std::all_of(answer.works.begin(), answer.works.end(),
                       [](const WorkPtr& work) { return !work || work->poll(); });
  };
  while (!sent_.empty() && arrived(sent_.front())) sent_.pop_front();
  Answer answer{.rows = model_.inference->top_logprobs(input, top_k_, temperature_, vocab_size_),
                .works = {}};
  if (link.answers) answer.works = share_rows(*link.answers, answer.rows);
  sent_.push_back(std::move(answer));
  ++num_answers_;
}

}  // namespace hearth
