// Experiment files: what is accepted, what is refused, and how it is said.
#include "launch/config_parser.h"

#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "base/error.h"
#include "launch/run_config.h"

using namespace hearth;

namespace {

const std::string kModel =
    "model: {hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4}\n";
const std::string kGood = kModel + "data: {train: [{path: shards/train}]}\ntraining: {train_iters: 10}\n";

LoadedConfig parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
  const auto fs = make_posix_file_system();
  return parse_experiment(*fs, text, "a.yaml", overrides);
}

// The message of the error, "" if there was none.
std::string error_of(const std::string& text, const std::vector<std::string>& overrides = {}) {
  try {
    parse(text, overrides);
  } catch (const Error& error) {
    BOOST_TEST((error.kind() == ErrorKind::Config || error.kind() == ErrorKind::Usage));
    return error.message();
  }
  return "";
}

void expect_line(const std::string& message, const std::string& line) {
  BOOST_TEST((message + "\n").find("\n  " + line + "\n") != std::string::npos, "no line '" << line
                                                                                           << "' in:\n"
                                                                                           << message);
}

struct TempFolder {
  std::filesystem::path path;
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "hearth_config_XXXXXX").string();
    path = mkdtemp(pattern.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path); }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path / name) << text;
    return (path / name).string();
  }
};

}  // namespace

BOOST_AUTO_TEST_CASE(defaults_are_those_of_the_design) {
  const ExperimentConfig c = parse(kGood).config;
  BOOST_TEST(c.data.seq_length == 2048);
  BOOST_TEST(c.training.micro_batch_size == 4);
  BOOST_TEST(c.training.global_batch_size == 64);
  BOOST_TEST(c.training.seed == 1234);
  BOOST_TEST(c.training.eval_interval == 100);
  BOOST_TEST(c.training.eval_iters == 10);
  BOOST_TEST(c.training.log_interval == 1);
  BOOST_TEST(!c.training.deterministic_mode);
  BOOST_TEST(c.optimizer.lr == 3.0e-4);
  BOOST_TEST(c.optimizer.min_lr == 3.0e-5);
  BOOST_TEST(c.optimizer.lr_decay_style == "cosine");
  BOOST_TEST(c.optimizer.lr_warmup_iters == 100);
  BOOST_TEST(!c.optimizer.lr_decay_iters.has_value());
  BOOST_TEST(c.optimizer.decay_horizon(10) == 10);
  BOOST_TEST(c.optimizer.lr_wsd_decay_iters == 0);
  BOOST_TEST(c.optimizer.weight_decay == 0.1);
  BOOST_TEST(c.optimizer.adam_beta1 == 0.9);
  BOOST_TEST(c.optimizer.adam_beta2 == 0.95);
  BOOST_TEST(c.optimizer.adam_eps == 1.0e-8);
  BOOST_TEST(c.optimizer.clip_grad == 1.0);
  BOOST_TEST(c.parallel.zero_stage == 1);
  BOOST_TEST(c.parallel.pipeline_schedule == "1f1b");
  BOOST_TEST(c.parallel.sequence_parallel);
  BOOST_TEST(c.precision.dtype == "bf16");
  BOOST_TEST(c.precision.main_params_dtype == "fp32");
  BOOST_TEST(c.precision.fp8_recipe == "none");
  BOOST_TEST(c.recompute.granularity == "selective");
  BOOST_TEST(c.recompute.modules == (std::vector<std::string>{"norm", "swiglu"}),
             boost::test_tools::per_element());
  BOOST_TEST(c.checkpoint.save == "runs/mine");
  BOOST_TEST(c.checkpoint.save_interval == 100);
  BOOST_TEST(c.checkpoint.keep_latest_k == 3);
  BOOST_TEST(c.checkpoint.async_save);
  BOOST_TEST(!c.checkpoint.load.has_value());
  BOOST_TEST(c.objective.kind == "pretrain");
}

BOOST_AUTO_TEST_CASE(all_mistakes_are_reported_at_once_with_position_and_nearest_key) {
  const std::string message = error_of(kModel +
                                       "data: {train: [{path: shards/train, wieght: 2}]}\n"
                                       "training:\n"
                                       "  train_iters: 1.5\n"
                                       "  train_iters: 3\n"
                                       "optimizer:\n"
                                       "  learning_rat: 1\n"
                                       "  adam_beta1: 2\n"
                                       "  lr: .nan\n"
                                       "  warmup_iters: 5\n"
                                       "  seed: 3\n"
                                       "optimiser: {}\n");
  expect_line(
      message,
      "a.yaml:2:37: data.train[0].wieght: unknown key; the nearest valid key is data.train[0].weight");
  expect_line(message, "a.yaml:4:16: training.train_iters: must be a whole number, got '1.5'");
  expect_line(message, "a.yaml:5:3: train_iters: duplicate key; the first is in line 4");
  expect_line(message, "a.yaml:8:3: optimizer.adam_beta1: must be in [0, 1), got 2");
  expect_line(message, "a.yaml:9:3: optimizer.lr: must be finite and > 0, got nan");
  expect_line(
      message,
      "a.yaml:10:3: optimizer.warmup_iters: unknown key; the nearest valid key is optimizer.lr_warmup_iters");
  expect_line(message, "a.yaml:11:3: optimizer.seed: unknown key; the nearest valid key is training.seed");
  expect_line(message, "a.yaml:12:1: optimiser: unknown key; the nearest valid key is optimizer");
  BOOST_TEST(message.find("a.yaml:7:3: optimizer.learning_rat: unknown key") != std::string::npos, message);
  BOOST_TEST(message.find("a.yaml: 9 mistakes") == 0u, message);
}

BOOST_AUTO_TEST_CASE(missing_sections_and_required_keys_are_named) {
  const std::string message = error_of("training: {}\n");
  expect_line(message,
              "a.yaml:1:1: data.train: needs at least one dataset, for example [{path: shards/train}]");
  expect_line(message, "a.yaml:1:1: training.train_iters: is required and must be > 0, got 0");
  expect_line(message, "a.yaml:1:1: model.hidden_size: must be > 0, got 0");
  BOOST_TEST(error_of("").find("data.train") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(wrong_types_say_what_was_seen) {
  const auto message_of = [](const std::string& override_text) { return error_of(kGood, {override_text}); };
  expect_line(
      message_of("training.deterministic_mode=yes"),
      "--set training.deterministic_mode=yes: training.deterministic_mode: must be true or false, got 'yes'");
  expect_line(message_of("optimizer.lr=fast"),
              "--set optimizer.lr=fast: optimizer.lr: must be a number, got 'fast'");
  expect_line(message_of("optimizer.lr=\"1\""),
              "--set optimizer.lr=\"1\": optimizer.lr: must be a number, got the text \"1\"");
  expect_line(message_of("optimizer.lr="),
              "--set optimizer.lr=: optimizer.lr: must be a number, got nothing");
  expect_line(message_of("optimizer.lr=inf"),
              "--set optimizer.lr=inf: optimizer.lr: must be a number, got 'inf'");
  expect_line(message_of("optimizer.lr=1e999"),
              "--set optimizer.lr=1e999: optimizer.lr: is beyond the range of a number, got '1e999'");
  expect_line(message_of("checkpoint.save=[a]"),
              "--set checkpoint.save=[a]: checkpoint.save: must be a text, got a list of 1");
  expect_line(message_of("data.train=shards"),
              "--set data.train=shards: data.train: must be a list, got 'shards'");
  expect_line(message_of("optimizer=3"), "--set optimizer=3: optimizer: must be a map of keys, got '3'");
  BOOST_TEST(message_of("training.seed=99999999999999999999").find("must be within 64 bits") !=
             std::string::npos);
  BOOST_TEST(message_of("training.seed=0x10").find("whole number") != std::string::npos);
  BOOST_TEST(message_of("training").find("expected --set section.key=value") != std::string::npos);
  BOOST_TEST(message_of("training..seed=1").find("unknown key") != std::string::npos);
}

BOOST_AUTO_TEST_CASE(overrides_win_and_may_be_lists_and_maps) {
  const LoadedConfig loaded = parse(
      kGood + "optimizer: {lr: 1.0e-3, clip_grad: 0.5}\n",
      {"optimizer.lr=2e-3", "data.train=[{path: a, weight: 0.3}, {path: b}]", "optimizer={adam_beta1: 0.8}",
       "checkpoint.load=runs/x=y", "optimizer.lr_decay_iters=null", "optimizer.lr=4e-3"});
  const ExperimentConfig& c = loaded.config;
  BOOST_TEST(c.optimizer.lr == 4e-3);  // the last of equals
  BOOST_TEST(c.optimizer.clip_grad == 0.5);
  BOOST_TEST(c.optimizer.adam_beta1 == 0.8);
  BOOST_TEST(c.data.train.size() == 2u);
  BOOST_TEST(c.data.train[0].weight == 0.3);
  BOOST_TEST(c.data.train[1].path == "b");
  BOOST_TEST(c.checkpoint.load.value() == "runs/x=y");
  BOOST_TEST(loaded.origin("optimizer.lr") == "--set optimizer.lr=4e-3");
  BOOST_TEST(loaded.origin("optimizer.clip_grad") == "a.yaml:4:25");
  BOOST_TEST(loaded.origin("optimizer.adam_eps") == "default");
}

BOOST_AUTO_TEST_CASE(sections_check_ranges) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"training.micro_batch_size=0", "training.micro_batch_size"},
      {"training.log_interval=0", "training.log_interval"},
      {"training.seed=-1", "training.seed"},
      {"optimizer.lr=-1", "optimizer.lr"},
      {"optimizer.lr=.inf", "optimizer.lr"},
      {"optimizer.adam_beta2=.nan", "optimizer.adam_beta2"},
      {"optimizer.adam_eps=0", "optimizer.adam_eps"},
      {"optimizer.clip_grad=-1", "optimizer.clip_grad"},
      {"optimizer.weight_decay=.nan", "optimizer.weight_decay"},
      {"optimizer.lr_decay_style=cosin", "optimizer.lr_decay_style"},
      {"optimizer.lr_decay_iters=0", "optimizer.lr_decay_iters"},
      {"optimizer.min_lr=1", "optimizer.min_lr"},
      {"optimizer.lr_decay_style=wsd", "optimizer.lr_wsd_decay_iters"},
      {"optimizer.lr_wsd_decay_iters=5", "optimizer.lr_wsd_decay_iters"},
      {"parallel.expert_model_parallel_size=2", "parallel.expert_model_parallel_size"},
      {"parallel.pipeline_schedule=interleaved", "parallel.virtual_pipeline_model_parallel_size"},
      {"parallel.zero_stage=4", "parallel.zero_stage"},
      {"precision.dtype=fp16", "precision.dtype"},
      {"precision.main_params_dtype=bf16", "precision.main_params_dtype"},
      {"precision.fp8_recipe=blockwise", "precision.fp8_recipe"},
      {"recompute.granularity=some", "recompute.granularity"},
      {"recompute.modules=[attention]", "recompute.modules[0]"},
      {"checkpoint.save=\"\"", "checkpoint.save"},
      {"checkpoint.keep_latest_k=-1", "checkpoint.keep_latest_k"},
      {"checkpoint.load=runs/mine", "checkpoint.load"},
      {"objective.kind=dpo", "objective.kind"},
      {"objective.teacher_ranks=1", "objective.teacher_ranks"},
      {"objective.teacher_top_k=64", "objective.teacher_top_k"},
      {"objective.teacher_parallel={pipeline_model_parallel_size: 2}", "objective.teacher_parallel"},
      {"data.seq_length=0", "data.seq_length"},
      {"data.seq_length=4096", "data.seq_length"},
      {"data.train=[]", "data.train"},
      {"data.train=[{weight: 1}]", "data.train[0].path"},
      {"data.train=[{path: a, weight: 0}]", "data.train[0].weight"},
      {"data.train=[{path: a}, 7]", "data.train[1]"},
      {"model.family=gpt", "model.family"},
      {"model.vocab_size=-1", "model.vocab_size"},
      {"model.num_key_value_heads=3", "model.num_key_value_heads"},
      {"model.qk_norm=true", "model.qk_norm"},
      {"model.attention_bias=true", "model.attention_output_bias"},
      {"model.rope_scaling={rope_type: yarn}", "model.rope_scaling.rope_type"},
      {"training.global_batch_size=6", "training.global_batch_size"},
      {"training.eval_interval=5", "training.eval_interval"},
  };
  for (const auto& [override_text, key] : cases) {
    const std::string message = error_of(kGood, {override_text});
    BOOST_TEST(message.find(": " + key + ": ") != std::string::npos,
               override_text << " should be refused at " << key << ", got: " << message);
  }
}

BOOST_AUTO_TEST_CASE(on_policy_samples_need_a_teacher_that_can_be_asked) {
  const std::vector<std::string> taught = {"objective.kind=distill", "objective.on_policy_share=0.5"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), taught.begin(), taught.end());
    return error_of(kGood, more);
  };
  BOOST_TEST(with({"objective.teacher=models/t"}) == "");
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"objective.teacher_cache=cache/t"}, "objective.on_policy_share"},
      {{"objective.teacher=models/t", "objective.kd_alpha=0"}, "objective.kd_alpha"},
      {{"objective.teacher=models/t", "objective.on_policy_temperature=-1"},
       "objective.on_policy_temperature"},
      {{"objective.teacher=models/t", "data.reset_attention_mask=false"}, "data.reset_attention_mask"},
  };
  for (const auto& [overrides, key] : cases) {
    const std::string message = with(overrides);
    BOOST_TEST(message.find(": " + key + ": ") != std::string::npos,
               "should be refused at " << key << ", got: " << message);
  }
  for (const char* share : {"objective.on_policy_share=1.5", "objective.on_policy_share=.nan"}) {
    const std::string message =
        error_of(kGood, {"objective.kind=distill", "objective.teacher=models/t", share});
    BOOST_TEST(message.find(": objective.on_policy_share: ") != std::string::npos, message);
  }
}

BOOST_AUTO_TEST_CASE(family_preset_and_inline_keys_have_their_order) {
  const TempFolder folder;
  const std::string preset = folder.write(
      "qwen.yaml",
      "family: qwen2\nhidden_size: 64\nintermediate_size: 128\nnum_hidden_layers: 2\nnum_attention_heads: 4\n"
      "rope_theta: 1000000.0\ntie_word_embeddings: true\nmax_position_embeddings: 4096\n");
  const std::string rest = "data: {train: [{path: a}]}\ntraining: {train_iters: 1}\n";
  const LoadedConfig loaded = parse("model: {preset: " + preset + ", num_hidden_layers: 3}\n" + rest,
                                    {"model.tie_word_embeddings=false"});
  const ModelSection& m = loaded.config.model;
  BOOST_TEST(m.attention_bias);  // the family's
  BOOST_TEST(m.rms_norm_eps == 1e-6);
  BOOST_TEST(m.rope_theta == 1e6);       // the preset's
  BOOST_TEST(m.num_hidden_layers == 3);  // the file's
  BOOST_TEST(!m.tie_word_embeddings);    // the command line's
  BOOST_TEST(!m.preset.has_value());
  BOOST_TEST(loaded.origin("model.attention_bias") == "family qwen2");
  BOOST_TEST(loaded.origin("model.rope_theta") == preset + ":6:1");
  BOOST_TEST(loaded.origin("model.num_hidden_layers").find("a.yaml:1:") == 0u);

  const std::string bad = folder.write("bad.yaml", "hiden_size: 3\npreset: x\n");
  const std::string message = error_of("model: {preset: " + bad + "}\n" + rest);
  expect_line(message,
              bad + ":1:1: model.hiden_size: unknown key; the nearest valid key is model.hidden_size");
  BOOST_TEST(message.find(bad + ":2:1: model.preset: unknown key") != std::string::npos, message);
  BOOST_TEST(error_of("model: {preset: no/such.yaml}\n" + rest).find("model.preset: cannot be read") !=
             std::string::npos);
}

BOOST_AUTO_TEST_CASE(small_learning_rate_brings_its_own_floor) {
  const LoadedConfig loaded = parse(kGood, {"optimizer.lr=1e-5"});
  BOOST_TEST(loaded.config.optimizer.min_lr == 1e-6, boost::test_tools::tolerance(1e-12));
  BOOST_TEST(loaded.origin("optimizer.min_lr") == "lr / 10");
  BOOST_TEST(parse(kGood, {"optimizer.lr=1e-3"}).config.optimizer.min_lr == 3e-5);
}

BOOST_AUTO_TEST_CASE(shape_may_come_from_init_from) {
  const std::string rest = "data: {train: [{path: a}]}\ntraining: {train_iters: 1}\n";
  ModelConfig shape = parse(kGood).config.model;
  shape.vocab_size = 100;
  shape.max_position_embeddings = 2048;
  LoadedConfig loaded = parse("model: {init_from: runs/base}\n" + rest);
  adopt_model_shape(loaded, shape, "runs/base");
  BOOST_TEST(loaded.config.model.hidden_size == 64);
  BOOST_TEST(loaded.config.model.init_from.value() == "runs/base");
  BOOST_TEST(loaded.origin("model.hidden_size") == "runs/base");

  LoadedConfig other = parse("model: {init_from: runs/base, tie_word_embeddings: true}\n" + rest);
  BOOST_CHECK_EXCEPTION(adopt_model_shape(other, shape, "runs/base"), Error, [](const Error& e) {
    return e.message().find("model.tie_word_embeddings: is true, but runs/base has false") !=
           std::string::npos;
  });
  LoadedConfig longer = parse("model: {init_from: runs/base}\n" + rest, {"data.seq_length=4096"});
  BOOST_CHECK_THROW(adopt_model_shape(longer, shape, "runs/base"), Error);
}

BOOST_AUTO_TEST_CASE(vocabulary_comes_from_the_tokenizer) {
  LoadedConfig loaded = parse(kGood);
  adopt_vocab_size(loaded, 4096, "tokenizer of shards/train");
  BOOST_TEST(loaded.config.model.vocab_size == 4096);
  BOOST_TEST(loaded.origin("model.vocab_size") == "tokenizer of shards/train");
  LoadedConfig larger = parse(kGood, {"model.vocab_size=5000"});
  adopt_vocab_size(larger, 4096, "t");
  BOOST_TEST(larger.config.model.vocab_size == 5000);
  LoadedConfig smaller = parse(kGood, {"model.vocab_size=4000"});
  BOOST_CHECK_THROW(adopt_vocab_size(smaller, 4096, "t"), Error);
}

BOOST_AUTO_TEST_CASE(layout_must_divide_world_and_batch) {
  const LoadedConfig loaded = parse(kGood, {"training.global_batch_size=16", "training.micro_batch_size=2"});
  for (const int world : {1, 2, 4, 8}) BOOST_TEST(require_layout(loaded, world).size(MeshAxis::Dp) == world);
  BOOST_CHECK_EXCEPTION(require_layout(loaded, 3), Error, [](const Error& e) {
    return e.kind() == ErrorKind::Config &&
           e.message().find("must be a multiple of micro_batch_size 2 x data-parallel size 3 = 6, got 16") !=
               std::string::npos;
  });
}

// kModel has 4 heads, 4 key/value heads, 2 layers and a width of 128; the message of require_layout, "" if
// there was none.
std::string layout_error(int world, std::vector<std::string> overrides) {
  overrides.insert(overrides.begin(), {"training.global_batch_size=16", "training.micro_batch_size=2"});
  const LoadedConfig loaded = parse(kGood, overrides);
  try {
    require_layout(loaded, world);
  } catch (const Error& error) {
    BOOST_TEST((error.kind() == ErrorKind::Config));
    return error.message();
  }
  return "";
}

BOOST_AUTO_TEST_CASE(layouts_that_the_model_and_batch_can_take) {
  const std::vector<std::pair<int, std::vector<std::string>>> good = {
      {4, {"parallel.tensor_model_parallel_size=4", "model.num_key_value_heads=2"}},
      {4, {"parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"}},
      {2, {"parallel.pipeline_model_parallel_size=2", "parallel.pipeline_model_parallel_layout=[1, 1]"}},
      {4, {"parallel.context_parallel_size=4", "parallel.cp_comm_type=a2a"}},
      {2, {"parallel.tensor_model_parallel_size=2", "data.seq_length=15"}},
      {2,
       {"parallel.tensor_model_parallel_size=2", "data.seq_length=15", "training.micro_batch_size=1",
        "parallel.sequence_parallel=false"}},
      {1, {"parallel.pipeline_schedule=zbv"}},
  };
  for (const auto& [world, overrides] : good) BOOST_TEST(layout_error(world, overrides) == "");
}

BOOST_AUTO_TEST_CASE(a_teacher_takes_the_last_ranks) {
  const auto with_teacher = [](int ranks, const std::string& parallel, std::vector<std::string> more = {}) {
    std::vector<std::string> overrides{
        "objective.kind=distill", "objective.teacher=t", fmt::format("objective.teacher_ranks={}", ranks),
        "objective.teacher_top_k=64", "objective.teacher_parallel=" + parallel};
    overrides.insert(overrides.end(), more.begin(), more.end());
    return overrides;
  };
  const std::string tp2_pp2 = "{tensor_model_parallel_size: 2, pipeline_model_parallel_size: 2}";
  BOOST_TEST(layout_error(8, with_teacher(4, tp2_pp2)) == "");
  const LoadedConfig loaded = parse(kGood, with_teacher(4, tp2_pp2));
  BOOST_TEST(require_layout(loaded, 6).world_size() == 2);
  const auto says = [](const std::string& message, const std::string& part) {
    BOOST_TEST(message.find(part) != std::string::npos, "'" << message << "' should say '" << part << "'");
  };
  says(layout_error(4, with_teacher(4, tp2_pp2)), "none is left to train");
  says(layout_error(8, with_teacher(3, tp2_pp2)),
       "must be a multiple of objective.teacher_parallel.tensor_model_parallel_size 2 x "
       "pipeline_model_parallel_size 2 = 4, got 3");
  says(layout_error(6, with_teacher(4, "{}")), "are 4 teachers for a data-parallel size of 2");
  says(
      layout_error(7, with_teacher(4, tp2_pp2, {"parallel.tensor_model_parallel_size=2"})),
      "of 7 ranks objective.teacher_ranks = 4 serve the teacher; for the others: the world size 3 is not a "
      "multiple of pipeline_model_parallel_size 1 x context_parallel_size 1 x expert_model_parallel_size 1 x "
      "tensor_model_parallel_size 2");
  says(error_of(kGood, with_teacher(4, "{tensor_model_parallel_size: 0}")),
       "objective.teacher_parallel.tensor_model_parallel_size: must be in [1, 65536], got 0");
  const auto error_with = [&](const std::string& more) {
    return error_of(kGood, with_teacher(4, tp2_pp2, {more}));
  };
  says(error_with("objective.kd_divergence=jsd"),
       "objective.kd_divergence: must be forward_kl with teacher_ranks");
  says(error_with("objective.teacher_top_k=0"), "objective.teacher_top_k: must be >= 1 with teacher_ranks");
}

BOOST_AUTO_TEST_CASE(layouts_that_they_cannot_take) {
  struct Case {
    int world;
    std::vector<std::string> overrides;
    std::string key, says;
  };
  const std::vector<Case> bad = {
      {3, {"parallel.tensor_model_parallel_size=3"}, "model.num_attention_heads", "4 is not a multiple of"},
      {3, {"parallel.tensor_model_parallel_size=3"}, "model.intermediate_size", "128 is not a multiple of"},
      {4,
       {"parallel.tensor_model_parallel_size=4", "model.num_attention_heads=12",
        "model.num_key_value_heads=6", "model.head_dim=8"},
       "model.num_key_value_heads",
       "6 is neither a multiple nor a divisor of parallel.tensor_model_parallel_size = 4"},
      {2, {"parallel.context_parallel_size=2", "data.seq_length=62"}, "data.seq_length", "multiple of 4"},
      {2,
       {"parallel.tensor_model_parallel_size=2", "data.seq_length=15", "training.micro_batch_size=1"},
       "parallel.sequence_parallel",
       "15 rows (micro_batch_size 1 x seq_length 15 / context_parallel_size 1)"},
      {4,
       {"parallel.context_parallel_size=2", "parallel.tensor_model_parallel_size=2",
        "parallel.cp_comm_type=a2a", "model.num_key_value_heads=2"},
       "parallel.cp_comm_type",
       "2 heads and 1 key/value heads"},
      {4,
       {"parallel.pipeline_model_parallel_size=4"},
       "parallel.pipeline_model_parallel_size",
       "2 layers cannot be split"},
      {2,
       {"parallel.pipeline_model_parallel_size=2", "parallel.pipeline_model_parallel_layout=[1, 2]"},
       "parallel.pipeline_model_parallel_layout",
       "adds up to 3, but the model has 2"},
      {2,
       {"parallel.pipeline_model_parallel_size=2", "parallel.pipeline_model_parallel_layout=[2]"},
       "parallel.pipeline_model_parallel_layout",
       "has 1 entries, expected one for each of 2"},
      {2,
       {"parallel.pipeline_model_parallel_size=2", "parallel.pipeline_schedule=dualpipev",
        "model.num_hidden_layers=4", "training.global_batch_size=6"},
       "parallel.pipeline_schedule",
       "needs at least 4 micro-batches per step for 2 stages, got 3"},
      {2,
       {"parallel.pipeline_model_parallel_size=2", "parallel.pipeline_schedule=interleaved",
        "parallel.virtual_pipeline_model_parallel_size=2", "model.num_hidden_layers=4",
        "training.global_batch_size=6"},
       "parallel.pipeline_schedule",
       "multiple of the 2 stages, got 3"},
  };
  for (const Case& c : bad) {
    const std::string message = layout_error(c.world, c.overrides);
    BOOST_TEST(message.find(": " + c.key + ": ") != std::string::npos, "no " << c.key << " in:\n" << message);
    BOOST_TEST(message.find(c.says) != std::string::npos, "no '" << c.says << "' in:\n" << message);
  }
}

BOOST_AUTO_TEST_CASE(all_mistakes_of_a_layout_at_once) {
  const std::string message =
      layout_error(12, {"parallel.tensor_model_parallel_size=3", "parallel.pipeline_model_parallel_size=4",
                        "training.global_batch_size=7", "data.seq_length=31", "training.micro_batch_size=1"});
  BOOST_TEST(message.find("5 mistakes") != std::string::npos,
             message);  // heads of both kinds, width, rows, layers
}

BOOST_AUTO_TEST_CASE(resolved_text_reads_back_equal) {
  const LoadedConfig first =
      parse(kGood, {"checkpoint.save=\"runs/a: b # \\\"c\\\" \\u00e9\"", "optimizer.lr=0.0012345678901234567",
                    "data.train=[{path: a, weight: 0.1}, {path: \"b,c\"}]",
                    "model.rope_scaling={rope_type: llama3, factor: 8}", "data.validation=[{path: v}]"});
  const LoadedConfig second = parse(resolved_yaml(first));
  BOOST_TEST((first.config == second.config), resolved_yaml(first));
  BOOST_TEST(experiment_hash(first.config) == experiment_hash(second.config));
  BOOST_TEST(experiment_hash(first.config) != experiment_hash(parse(kGood).config));
  BOOST_TEST(resolved_yaml(first).find("  seq_length: 2048  # default\n") != std::string::npos);

  const auto json = nlohmann::json::parse(resolved_json(first));
  BOOST_TEST(json["optimizer.lr"]["value"].get<double>() == 0.0012345678901234567);
  BOOST_TEST(json["optimizer.lr"]["origin"].get<std::string>().find("--set optimizer.lr=") == 0u);
  BOOST_TEST(json["data.train"]["value"].size() == 2u);
}

BOOST_AUTO_TEST_CASE(line_ends_marks_and_odd_yaml) {
  std::string crlf;
  for (const char c : kGood) crlf += c == '\n' ? std::string("\r\n") : std::string(1, c);
  BOOST_TEST((parse(crlf).config == parse(kGood).config));
  BOOST_TEST((parse("\xef\xbb\xbf" + kGood).config == parse(kGood).config));
  BOOST_TEST((parse(kGood + "optimizer:\n  # all of it commented out\n").config == parse(kGood).config));
  BOOST_TEST(error_of(kGood + "---\nmodel: {}\n").find("second document") != std::string::npos);
  BOOST_TEST(error_of("model: &m {hidden_size: 1}\ndata: *m\n").find("aliases") != std::string::npos);
  BOOST_TEST(error_of("model: !!python/object {}\n").find("tag") != std::string::npos);
  BOOST_TEST(error_of("[1, 2]\n").find("must be a map") != std::string::npos);
  BOOST_TEST(error_of("model: {\n").find("a.yaml:") != std::string::npos);
  BOOST_TEST(error_of("\"unclosed").find("no YAML") != std::string::npos);
  BOOST_TEST(error_of("? {a: b}\n: 1\n").find("a key must be a plain word") != std::string::npos);
  BOOST_TEST(error_of(std::string(10000, '[')).find("a.yaml:") != std::string::npos);
  BOOST_TEST(error_of(std::string(10000, '{')).find("a.yaml:") != std::string::npos);
  std::string nested = "model:\n";
  for (int depth = 1; depth < 1000; ++depth) nested += std::string(static_cast<size_t>(depth), ' ') + "a:\n";
  BOOST_TEST(error_of(nested).find("nested deeper") != std::string::npos);
  BOOST_TEST(error_of(std::string((1 << 20) + 1, ' ')).find("bytes long") != std::string::npos);
  BOOST_TEST(error_of(std::string("model: {family: \"a\\0b\"}\n")).find("NUL") != std::string::npos);
}

// Whatever the bytes are, the parser answers with a configuration or with Error{Config}.
BOOST_AUTO_TEST_CASE(mangled_files_never_do_anything_but_throw_config_errors) {
  constexpr unsigned kSeed = 20260311;
  std::mt19937 random(kSeed);
  BOOST_TEST_MESSAGE("seed " << kSeed);
  std::string alphabet = "{}[]:,#&*!|>'\"%@`-? \n\t\r\x7f\xff";
  alphabet += "09ae.~";
  alphabet += '\0';
  for (int round = 0; round < 3000; ++round) {
    std::string text = kGood;
    for (unsigned edits = random() % 4 + 1; edits > 0; --edits) {
      const size_t at = random() % text.size();
      switch (random() % 3) {
        case 0:
          text[at] = alphabet[random() % alphabet.size()];
          break;
        case 1:
          text.insert(at, 1, alphabet[random() % alphabet.size()]);
          break;
        default:
          text.erase(at, random() % 8 + 1);
      }
      if (text.empty()) text = "x";
    }
    error_of(text);  // tests the kind of what is thrown; anything but Error fails the case
  }
}

BOOST_AUTO_TEST_CASE(parallel_overrides_alone) {
  BOOST_TEST(parse_parallel_overrides({}).zero_stage == 0);
  const std::vector<std::string> timeout = {"parallel.collective_timeout_s=10"}, wrong = {"optimizer.lr=1"},
                                 range = {"parallel.zero_stage=9"};
  BOOST_TEST(parse_parallel_overrides(timeout).collective_timeout_s == 10.0);
  BOOST_CHECK_THROW(parse_parallel_overrides(wrong), Error);
  BOOST_CHECK_THROW(parse_parallel_overrides(range), Error);
}
