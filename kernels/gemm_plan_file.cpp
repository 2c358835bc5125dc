#include "kernels/gemm_plan_file.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <charconv>
#include <sstream>
#include <string_view>
#include <utility>

#include "base/error.h"

namespace hearth::kernels {
namespace {

// "KEY 0123456789abcdef ... 0123456789abcdef": nullopt unless exactly that.
std::optional<std::pair<std::string, GemmAlgorithm>> parse_line(const std::string& line) {
  std::istringstream words(line);
  std::string key, word;
  if (!(words >> key)) return std::nullopt;
  GemmAlgorithm algorithm{};
  for (uint64_t& part : algorithm) {
    if (!(words >> word) || word.size() != 16) return std::nullopt;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), part, 16);
    if (error != std::errc() || end != word.data() + word.size()) return std::nullopt;
  }
  if (words >> word) return std::nullopt;
  return std::pair(std::move(key), algorithm);
}

}  // namespace

GemmPlanFile::GemmPlanFile(FileSystem& fs, std::string path) : fs_(fs), path_(std::move(path)) {
  try {
    if (!fs_.exists(path_)) return;
    std::istringstream lines(fs_.read_text(path_));
    for (std::string line; std::getline(lines, line);)
      if (auto parsed = parse_line(line)) known_[parsed->first] = parsed->second;
  } catch (const Error&) {
    known_.clear();
  }
}

std::optional<GemmAlgorithm> GemmPlanFile::find(const std::string& key) const {
  const auto found = known_.find(key);
  return found == known_.end() ? std::nullopt : std::optional(found->second);
}

void GemmPlanFile::keep(const std::string& key, const GemmAlgorithm& algorithm) {
  known_[key] = algorithm;
  try {
    if (const auto slash = path_.rfind('/'); slash != std::string::npos && slash > 0)
      fs_.create_directories(path_.substr(0, slash));
    const auto file = fs_.create(path_, CreateMode::Append);
    file->write(std::string_view(fmt::format("{} {:016x}\n", key, fmt::join(algorithm, " "))));
    file->close();
  } catch (const Error&) {
  }
}

}  // namespace hearth::kernels
