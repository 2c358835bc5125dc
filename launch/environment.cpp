#include "launch/environment.h"

#include <unistd.h>

#include <array>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace hearth {
namespace {

std::string text_of(const char* variable) {
  const char* value = std::getenv(variable);
  return value ? value : "";
}

// The first of the variables that holds a whole number >= 0.
int number_of(std::initializer_list<const char*> variables, int otherwise) {
  for (const char* variable : variables) {
    const std::string text = text_of(variable);
    int value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (!text.empty() && error == std::errc() && end == text.data() + text.size() && value >= 0) return value;
  }
  return otherwise;
}

}  // namespace

Environment read_environment() {
  Environment e;
  e.launch = LaunchEnvironment::read([](const char* variable) { return std::getenv(variable); });
  // SLURM_* alone say nothing about ranks: a shell of an allocation has them too. SLURM_STEP_NUM_TASKS is of
  // srun.
  e.world_size = number_of({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"}, 1);
  if (e.world_size < 1) e.world_size = 1;
  if (e.world_size > 1)
    e.rank = number_of({"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"}, 0);
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) == 0) e.host = name.data();
  e.slurm_job_id = text_of("SLURM_JOB_ID");
  e.stderr_is_terminal = isatty(STDERR_FILENO) == 1;
  e.omp_num_threads = number_of({"OMP_NUM_THREADS"}, 0);
  e.cache_folder = text_of("HEARTH_CACHE");
  if (const std::string home = text_of("HOME"); e.cache_folder.empty() && !home.empty())
    e.cache_folder = home + "/.cache/hearth";
  e.fault_plan = text_of("HEARTH_FAULT");
  return e;
}

}  // namespace hearth
