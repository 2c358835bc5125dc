#include "parallel/control_plane.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace hearth {

bool ControlPlane::vote(bool mine, std::string_view reason, std::string_view site,
                        std::vector<std::string>* reasons) {
  const auto answers = all_gather(mine ? "y" : "n" + std::string(reason), site);
  bool all = true;
  for (size_t r = 0; r < answers.size(); ++r) {
    if (answers[r] == "y") continue;
    all = false;
    if (reasons != nullptr)
      reasons->push_back(fmt::format("rank {}: {}", job_rank(static_cast<int>(r)), answers[r].substr(1)));
  }
  return all;
}

void ControlPlane::require_same(std::string_view what, std::string_view mine, std::string_view site) {
  const auto all = all_gather(mine, site);
  // The value of most ranks is the expected one; a tie goes to the lower rank.
  const std::string* expected = &all[0];
  for (const auto& value : all)
    if (std::count(all.begin(), all.end(), value) > std::count(all.begin(), all.end(), *expected))
      expected = &value;
  std::string odd;
  for (size_t r = 0; r < all.size(); ++r)
    if (all[r] != *expected)
      odd +=
          fmt::format("{}rank {} has '{}'", odd.empty() ? "" : ", ", job_rank(static_cast<int>(r)), all[r]);
  HEARTH_CHECK(odd.empty(), Config, "ranks disagree on {}: {}; the others have '{}'", what, odd, *expected);
}

int64_t ControlPlane::all_reduce_max(int64_t mine, std::string_view site) {
  int64_t most = mine;
  for (const auto& text : all_gather(std::to_string(mine), site))
    most = std::max<int64_t>(most, std::stoll(text));
  return most;
}

int64_t ControlPlane::all_reduce_sum(int64_t mine, std::string_view site) {
  int64_t sum = 0;
  for (const auto& text : all_gather(std::to_string(mine), site)) sum += std::stoll(text);
  return sum;
}

std::vector<int> ControlPlane::all_ranks() const {
  std::vector<int> ranks(static_cast<size_t>(world_size()));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

namespace {
class SingleControlPlane final : public ControlPlane {
 public:
  SingleControlPlane() {
    char name[256] = {};
    host_ = ::gethostname(name, sizeof(name) - 1) == 0 ? name : "localhost";
  }
  int rank() const override { return 0; }
  int world_size() const override { return 1; }
  int local_rank() const override { return 0; }
  int local_world_size() const override { return 1; }
  const std::string& host() const override { return host_; }
  std::vector<std::string> all_gather(std::string_view mine, std::string_view) override {
    return {std::string(mine)};
  }
  std::string broadcast(std::string_view from_root, std::string_view, int) override {
    return std::string(from_root);
  }
  void barrier(std::string_view) override {}
  void set_timeout(double) override {}
  FailureMeeting meet_after_error(std::string_view, double) override {
    return {.all_failed = true, .speak = true};
  }
  [[noreturn]] void abort(int code) override { ::_exit(code); }

 private:
  std::string host_;
};
}  // namespace

std::unique_ptr<ControlPlane> make_single_control_plane() {
  return std::make_unique<SingleControlPlane>();
}

}  // namespace hearth
