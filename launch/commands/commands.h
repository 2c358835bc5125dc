// Every verb of hearth. One file each; launch/main.cpp calls each function once. See launch/command.h.
#pragma once

namespace CLI {
class App;
}

namespace hearth {

struct CommandContext;

void add_doctor_command(CLI::App& parent, CommandContext& context);
void add_train_command(CLI::App& parent, CommandContext& context);
void add_plan_command(CLI::App& parent, CommandContext& context);
void add_bench_command(CLI::App& parent,
                       CommandContext& context);  // with train, kernels and collectives below it
void add_parity_command(CLI::App& parent, CommandContext& context);
void add_eval_command(CLI::App& parent, CommandContext& context);
void add_generate_command(CLI::App& parent, CommandContext& context);
void add_import_command(CLI::App& parent, CommandContext& context);
void add_export_command(CLI::App& parent, CommandContext& context);
void add_distill_command(CLI::App& parent, CommandContext& context);  // with cache below it
void add_report_command(CLI::App& parent, CommandContext& context);
void add_watch_command(CLI::App& parent, CommandContext& context);       // with lineage below it
void add_checkpoint_command(CLI::App& parent, CommandContext& context);  // with inspect and verify below it

// Below `hearth bench`:
void add_bench_collectives_command(CLI::App& parent, CommandContext& context);

// Below `hearth data`:
void add_data_prepare_command(CLI::App& parent, CommandContext& context);
void add_data_inspect_command(CLI::App& parent, CommandContext& context);
void add_data_verify_command(CLI::App& parent, CommandContext& context);
void add_data_audit_command(CLI::App& parent, CommandContext& context);
void add_data_train_tokenizer_command(CLI::App& parent, CommandContext& context);
void add_data_encode_command(CLI::App& parent, CommandContext& context);
void add_data_decode_command(CLI::App& parent, CommandContext& context);

}  // namespace hearth
