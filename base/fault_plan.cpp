#include "base/fault_plan.h"

#include <signal.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <chrono>
#include <thread>
#include <utility>

#include "base/error.h"

namespace hearth {
namespace {

constexpr std::array<std::pair<std::string_view, FaultAction>, 9> kActions{
    {{"kill", FaultAction::Kill},
     {"stop", FaultAction::Stop},
     {"term", FaultAction::Term},
     {"exit", FaultAction::Exit},
     {"throw", FaultAction::Throw},
     {"sleep", FaultAction::Sleep},
     {"nan", FaultAction::Nan},
     {"flip", FaultAction::Flip},
     {"skip_collective", FaultAction::SkipCollective}}};

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\n')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\n')) text.remove_suffix(1);
  return text;
}

// Cuts `text` up to the next `separator` off and returns it.
std::string_view take_until(std::string_view& text, char separator) {
  const size_t at = text.find(separator);
  const auto head = text.substr(0, at);
  text = at == std::string_view::npos ? std::string_view() : text.substr(at + 1);
  return trim(head);
}

int64_t number(std::string_view key, std::string_view value) {
  int64_t out = 0;
  const auto [end, code] = std::from_chars(value.data(), value.data() + value.size(), out);
  HEARTH_REQUIRE(code == std::errc() && end == value.data() + value.size() && out >= 0,
                 "fault plan: {}={} is not a non-negative integer", key, value);
  return out;
}

FaultRule parse_rule(std::string_view text) {
  FaultRule rule;
  const auto word = take_until(text, '@');
  bool known = false;
  for (const auto& [name, action] : kActions) {
    if (name != word) continue;
    rule.action = action;
    known = true;
  }
  HEARTH_REQUIRE(known,
                 "fault plan: unknown action '{}'; one of kill stop term exit throw sleep nan flip "
                 "skip_collective",
                 word);
  while (!text.empty()) {
    auto value = take_until(text, ',');
    const auto key = take_until(value, '=');
    if (key == "rank")
      rule.rank = number(key, value);
    else if (key == "step")
      rule.step = number(key, value);
    else if (key == "point")
      rule.point = value;
    else if (key == "count")
      rule.count = number(key, value);
    else if (key == "every")
      rule.every = number(key, value);
    else if (key == "ms")
      rule.ms = number(key, value);
    else if (key == "code")
      rule.code = number(key, value);
    else
      fail(ErrorKind::Usage, "fault plan: unknown key '{}'; one of rank step point count every ms code", key);
  }
  HEARTH_REQUIRE(rule.count >= 1, "fault plan: count counts from 1, got {}", rule.count);
  return rule;
}

}  // namespace

std::vector<FaultRule> parse_fault_plan(std::string_view text) {
  std::vector<FaultRule> plan;
  while (!text.empty()) {
    const auto rule = take_until(text, ';');
    if (!rule.empty()) plan.push_back(parse_rule(rule));
  }
  return plan;
}

void FaultInjector::set_step(int64_t step) {
  const std::lock_guard lock(mutex_);
  step_ = step;
}

std::optional<FaultAction> FaultInjector::hit(std::string_view point) {
  std::optional<FaultRule> fired;
  {
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < plan_.size(); ++i) {
      const FaultRule& rule = plan_[i];
      if ((rule.rank && *rule.rank != rank_) || (rule.step && *rule.step != step_)) continue;
      if (!rule.point.empty() && rule.point != point) continue;
      const int64_t match = ++matches_[i];
      if (match == rule.count || (rule.every != 0 && match > rule.count)) fired = rule;
    }
  }
  if (!fired) return std::nullopt;
  switch (fired->action) {
    case FaultAction::Kill:
      ::kill(::getpid(), SIGKILL);
      break;
    case FaultAction::Stop:
      ::kill(::getpid(), SIGSTOP);
      break;
    case FaultAction::Term:
      ::kill(::getpid(), SIGTERM);
      break;
    case FaultAction::Exit:
      ::_exit(static_cast<int>(fired->code));  // as a crashing library would, without unwinding
    case FaultAction::Throw:
      fail(ErrorKind::Internal, "fault plan: thrown at {} as ordered", point);
    case FaultAction::Sleep:
      std::this_thread::sleep_for(std::chrono::milliseconds(fired->ms));
      break;
    default:
      return fired->action;
  }
  return std::nullopt;
}

}  // namespace hearth
