// hearth: one program, one verb per call. Reads the environment once, runs the verb, reports trouble once.
#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "launch/build_info.h"
#include "launch/command.h"
#include "launch/commands/commands.h"
#include "launch/error_report.h"
#include "launch/nearest_word.h"
#include "launch/signals.h"

namespace hearth {
namespace {

void add_commands(CLI::App& app, CommandContext& context) {
  add_doctor_command(app, context);
  CLI::App* data =
      app.add_subcommand("data", "Prepare, inspect and verify token datasets; train and try tokenizers");
  data->require_subcommand(1);
  data->preparse_callback([&context](size_t) {
    HEARTH_CHECK(
        context.job.control->world_size() == 1, Usage,
        "`hearth data` works on one rank, not on {}: start it without mpirun (it uses all cores by itself)",
        context.job.control->world_size());
  });
  add_data_prepare_command(*data, context);
  add_data_inspect_command(*data, context);
  add_data_verify_command(*data, context);
  add_data_audit_command(*data, context);
  add_data_train_tokenizer_command(*data, context);
  add_data_encode_command(*data, context);
  add_data_decode_command(*data, context);
  add_train_command(app, context);
  add_plan_command(app, context);
  add_bench_command(app, context);
  add_parity_command(app, context);
  add_eval_command(app, context);
  add_generate_command(app, context);
  add_import_command(app, context);
  add_export_command(app, context);
  add_checkpoint_command(app, context);
  add_distill_command(app, context);
  add_report_command(app, context);
  add_watch_command(app, context);
}

constexpr const char* kFooter =
    "Results go to standard output, progress and logs to standard error.\n"
    "Exit codes: 0 done, 2 usage, 3 config, 4 bad input, 5 no usable checkpoint, 6 non-finite numbers, 7 "
    "timeout,\n"
    "8 rank or link lost, 9 I/O or no space, 10 run folder in use, 11 device, 70 our bug, 75 preempted: run "
    "it again.";

const CLI::App* deepest_parsed(const CLI::App* app) {
  while (!app->get_subcommands().empty()) app = app->get_subcommands().front();
  return app;
}

// CLI11 reports a mistyped verb as a missing one, with the words left over.
std::string describe(const CLI::App& deepest, const CLI::ParseError& error) {
  const auto left = deepest.remaining();
  if (left.empty() || dynamic_cast<const CLI::RequiredError*>(&error) == nullptr) return error.what();
  std::vector<std::string> verbs;
  for (const CLI::App* verb : deepest.get_subcommands([](const CLI::App*) { return true; }))
    verbs.push_back(verb->get_name());
  return fmt::format("{} has no '{}'; the nearest is '{}'", deepest.get_name(), left.front(),
                     nearest_word(left.front(), verbs));
}

// Help and version go to stdout of rank 0; a wrong command line becomes Error{Usage}.
void parse_and_run(CLI::App& app, int argc, char** argv, int rank) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& success) {
    if (rank == 0) app.exit(success);
  } catch (const CLI::ParseError& error) {
    const CLI::App* deepest = deepest_parsed(&app);
    std::string command;
    for (const CLI::App* at = deepest; at != nullptr; at = at->get_parent())
      command = at->get_name() + (command.empty() ? "" : " " + command);
    throw Error(ErrorKind::Usage, describe(*deepest, error)).with("see", command + " --help");
  }
}

void require_stdout_written() {
  HEARTH_CHECK(std::cout.flush() && std::fflush(stdout) == 0, Io,
               "cannot write the results to standard output: is the disk full?");
}

int run_verb(int argc, char** argv, FileSystem& fs, const Environment& environment, Job& job) {
  CommandContext context{.fs = fs, .environment = environment, .job = job};
  try {
    CLI::App app("Hearth trains, distils and fine-tunes large language models inside your own walls.",
                 "hearth");
    app.set_version_flag("--version", build_id());
    app.footer(kFooter);
    app.require_subcommand(1);
    add_commands(app, context);
    parse_and_run(app, argc, argv, job.control->rank());
    require_stdout_written();
  } catch (const std::exception& exception) {
    throw as_error(exception);
  }
  return context.exit_code;
}

int run(int argc, char** argv) {
  const Environment environment = read_environment();
  catch_stop_notice();
  const std::unique_ptr<FileSystem> fs = make_posix_file_system();
  const auto report = [&](const Error& error) {
    std::cerr << error_report(error, environment) << std::flush;
  };
  try {
    return run_job(
        environment.launch, JobOptions{},
        [&](Job& job) { return run_verb(argc, argv, *fs, environment, job); }, report);
  } catch (const std::exception& exception) {  // the job could not start
    const Error error = as_error(exception);
    report(error);
    return exit_code(error.kind());
  }
}

}  // namespace
}  // namespace hearth

int main(int argc, char** argv) {
  return hearth::run(argc, argv);
}
