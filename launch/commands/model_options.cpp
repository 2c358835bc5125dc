#include "launch/commands/model_options.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "launch/config_parser.h"
#include "trainer/loaded_model.h"

namespace hearth {
namespace {

constexpr std::array<std::string_view, 4> kKeysThatCount = {
    "parallel.tensor_model_parallel_size", "parallel.pipeline_model_parallel_size",
    "parallel.pipeline_model_parallel_layout", "parallel.collective_timeout_s"};

std::vector<std::string> keys_of_trainings(const std::vector<std::string>& overrides) {
  std::vector<std::string> keys;
  for (const std::string& text : overrides) {
    std::string key = text.substr(0, text.find('='));
    if (std::find(kKeysThatCount.begin(), kKeysThatCount.end(), key) == kKeysThatCount.end())
      keys.push_back(std::move(key));
  }
  return keys;
}

}  // namespace

ParallelConfig layout_to_answer(const std::vector<std::string>& overrides, const ParallelConfig& otherwise,
                                ControlPlane& control, Log& log) {
  const ParallelConfig layout =
      overrides.empty() ? otherwise : answering_layout(parse_parallel_overrides(overrides));
  const auto unused = keys_of_trainings(overrides);
  if (!unused.empty() && control.rank() == 0)
    log.warning(
        "event=layout text=\"only a training needs {}: weights are whole on each replica, of one chunk a "
        "rank\"",
        fmt::join(unused, ", "));
  control.set_timeout(layout.collective_timeout_s);
  return layout;
}

}  // namespace hearth
