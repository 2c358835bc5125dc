#include "launch/error_report.h"

#include <new>
#include <string_view>

namespace hearth {
namespace {

// A terminal must not obey what a broken file says.
std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if ((byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7f)
      out += fmt::format("\\x{:02x}", byte);
    else
      out += c;
  }
  return out;
}

}  // namespace

Error as_error(const std::exception& exception) {
  if (const auto* error = dynamic_cast<const Error*>(&exception)) return *error;
  if (dynamic_cast<const std::bad_alloc*>(&exception))
    return Error(ErrorKind::NoSpace,
                 "out of memory: the machine refused an allocation; use a smaller batch or model");
  return Error(ErrorKind::Internal, fmt::format("unexpected: {} (please report)", exception.what()));
}

std::string error_report(const Error& error, const Environment& environment) {
  // what() is message + tag + details; the tag belongs on the first line of a message that has several.
  const std::string& message = error.message();
  const std::string_view rest = std::string_view(error.what()).substr(message.size());
  const size_t tag_end = std::min(rest.find('\n'), rest.size());
  const size_t first_line_end = std::min(message.find('\n'), message.size());
  std::string out = "error: " + message.substr(0, first_line_end);
  out += rest.substr(0, tag_end);
  out += message.substr(first_line_end);
  out += rest.substr(tag_end);
  while (!out.empty() && out.back() == '\n') out.pop_back();
  if (environment.several_ranks() || !environment.slurm_job_id.empty()) {
    out += fmt::format("\n  {:<12} rank {}/{}  host {}", "at", environment.rank, environment.world_size,
                       environment.host);
    if (!environment.slurm_job_id.empty()) out += fmt::format("  slurm job {}", environment.slurm_job_id);
  }
  return printable(out) + "\n";
}

}  // namespace hearth
