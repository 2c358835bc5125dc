#include "parallel/agreement.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace hearth {
namespace {

const std::string& most_common(const std::vector<std::string>& values) {
  const auto count = [&](const std::string& value) {
    return std::count(values.begin(), values.end(), value);
  };
  return *std::max_element(values.begin(), values.end(),
                           [&](const auto& a, const auto& b) { return count(a) < count(b); });
}

std::string disagreement(const std::string& what, const std::vector<std::string>& values) {
  const std::string& expected = most_common(values);
  std::string odd;
  for (size_t r = 0; r < values.size(); ++r)
    if (values[r] != expected)
      odd += fmt::format("{}rank {} has '{}'", odd.empty() ? "" : ", ", r, values[r]);
  return odd.empty() ? "" : fmt::format("{}: {}; the others have '{}'", what, odd, expected);
}

}  // namespace

void require_agreement(ControlPlane& control, const Facts& mine) {
  // JSON and not a separator: a value may hold any byte that is text.
  const auto texts = control.all_gather(nlohmann::json(mine).dump(), "start.agreement");
  std::vector<Facts> all;
  for (const auto& text : texts) all.push_back(nlohmann::json::parse(text).get<Facts>());
  std::string trouble;
  for (size_t f = 0; f < mine.size(); ++f) {
    std::vector<std::string> values;
    for (const Facts& facts : all) {
      HEARTH_CHECK(
          facts.size() == mine.size() && facts[f].first == mine[f].first, Config,
          "ranks run different programs: their start-up checks differ in number or name; use one build on "
          "every node");
      values.push_back(facts[f].second);
    }
    const std::string one = disagreement(mine[f].first, values);
    if (!one.empty()) trouble += "\n  " + one;
  }
  HEARTH_CHECK(trouble.empty(), Config, "ranks disagree; nothing was started or written:{}", trouble);
}

}  // namespace hearth
