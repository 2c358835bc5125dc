// data/prepare with conversations: packed, masked, paired; the same bytes whatever the workers and kills.
#include <sys/wait.h>

#include <map>
#include <set>

#include "data/prepare.h"
#include "data/sampler.h"
#include "tests/data/data_fixture.h"
#include "tests/data/killing_file_system.h"

using namespace hearth;
using namespace hearth::testing;
using nlohmann::json;

namespace {

constexpr int64_t kPack = 256, kPairPack = 512;
const std::string kTemplate =
    "{% for m in messages %}{{ '[' + m.role + ']' + m.content + '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}";

struct Fixture {
  TempFolder folder;
  std::unique_ptr<FileSystem> fs = make_posix_file_system();
  Fixture() {
    write_byte_tokenizer(folder / "tok");
    write_file(folder / "tok/chat_template.jinja", kTemplate);
  }
  PrepareOptions options(const std::vector<std::string>& inputs, const std::string& output,
                         RecordFormat format = RecordFormat::Messages) const {
    PrepareOptions out;
    for (const auto& input : inputs) out.inputs.push_back(folder / input);
    out.tokenizer = folder / "tok";
    out.output = folder / output;
    out.num_workers = 2;
    out.unit_bytes = 2000;
    out.shard_bytes = 30000;
    out.conversations.format = format;
    out.conversations.pack_length = kPack;
    return out;
  }
  std::map<std::string, std::string> tree(const std::string& output) const {
    std::map<std::string, std::string> files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder / output))
      if (entry.is_regular_file())
        files[std::filesystem::relative(entry.path(), folder / output).string()] =
            read_file(entry.path().string());
    return files;
  }
  // Documents with what is learnt in braces; padding (eos with mask 0 behind an eos) is taken off.
  std::vector<std::string> documents(const std::string& output) {
    const auto dataset = Dataset::open(*fs, folder / output);
    std::vector<std::string> out;
    for (int64_t i = 0; i < dataset->num_documents(); ++i)
      out.push_back(shown(dataset->document(i), dataset->document_loss_mask(i)));
    return out;
  }
  std::multiset<std::string> document_set(const std::string& output) {
    const auto all = documents(output);
    return {all.begin(), all.end()};
  }
  static std::string shown(std::vector<int32_t> ids, const std::vector<uint8_t>& mask) {
    while (ids.size() > 1 && ids.back() == kEos && ids[ids.size() - 2] == kEos && !mask[ids.size() - 1])
      ids.pop_back();
    static const auto names = [] {
      std::vector<std::string> bytes(257, "$");
      for (size_t i = 0; i < 256; ++i) {
        const auto decoded = byte_alphabet()[i];
        bytes[i] = decoded == utf8(256 + 32) ? " " : decoded;  // the space is the 33rd unprintable byte
      }
      return bytes;
    }();
    std::string out;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (mask[i] && (i == 0 || !mask[i - 1])) out += "{";
      out += names[static_cast<size_t>(ids[i])];
      if (mask[i] && (i + 1 == ids.size() || !mask[i + 1])) out += "}";
    }
    return out;
  }
};

std::string question(int i) {
  return "q" + std::to_string(i) + std::string(static_cast<size_t>(i * 37 % 60), '?');
}
std::string answer(int i) {
  return "a" + std::to_string(i) + std::string(static_cast<size_t>(i * 53 % 90), '!');
}
json conversation(int i) {
  json messages = json::array(
      {{{"role", "user"}, {"content", question(i)}}, {{"role", "assistant"}, {"content", answer(i)}}});
  if (i % 4 == 0) {
    messages.push_back({{"role", "user"}, {"content", "more"}});
    messages.push_back({{"role", "assistant"}, {"content", "no"}});
  }
  return {{"messages", messages}};
}
std::string shown_conversation(int i) {
  return "[user]" + question(i) + "$[assistant]{" + answer(i) + "$}" +
         (i % 4 ? "" : "[user]more$[assistant]{no$}");
}
std::string lines(int first, int last) {
  std::string out;
  for (int i = first; i < last; ++i) out += conversation(i).dump() + "\n";
  return out;
}
std::string preference_lines(int first, int last) {
  std::string out;
  for (int i = first; i < last; ++i)
    out +=
        json({{"prompt", question(i)}, {"chosen", answer(i)}, {"rejected", answer(i + 1000)}}).dump() + "\n";
  return out;
}

}  // namespace

BOOST_FIXTURE_TEST_CASE(every_conversation_is_once_in_one_bin, Fixture) {
  write_file(folder / "in/a.jsonl", lines(0, 300));
  json array = json::array();
  for (int i = 300; i < 400; ++i) array.push_back(conversation(i));
  write_file(folder / "in/b.json", array.dump(2));
  const PrepareReport report = prepare_dataset(*fs, options({"in"}, "out"));
  BOOST_TEST(report.num_documents == 400);
  BOOST_TEST(report.num_shards >= 3);
  BOOST_TEST(report.num_cut_documents == 0);
  BOOST_TEST(report.num_untrained_documents == 0);
  std::multiset<std::string> want;
  for (int i = 0; i < 400; ++i) want.insert(shown_conversation(i));
  BOOST_TEST((document_set("out") == want));
  const auto dataset = Dataset::open(*fs, folder / "out");
  int64_t padding = 0;
  for (const auto& shard : dataset->manifest().shards) {
    BOOST_TEST((shard.num_tokens - 1) % kPack == 0);
    padding += *shard.num_padding_tokens;
  }
  BOOST_TEST(report.num_padding_tokens == padding);
  BOOST_TEST(report.num_tokens + padding == dataset->num_tokens());
  BOOST_TEST(padding * 8 < report.num_tokens);  // sixty documents a shard, each two fifths of a bin
  BOOST_TEST(dataset->kind() == "sft");
  BOOST_TEST(verify_dataset(*fs, folder / "out", 2).num_documents == 400);
}

BOOST_FIXTURE_TEST_CASE(the_output_does_not_depend_on_workers_or_units, Fixture) {
  write_file(folder / "in/a.jsonl", lines(0, 300));
  auto first = options({"in"}, "w1");
  first.num_workers = 1;
  prepare_dataset(*fs, first);
  const auto want = tree("w1");
  for (const int workers : {2, 5}) {
    auto other = options({"in"}, "w" + std::to_string(workers));
    other.num_workers = workers;
    other.unit_bytes = workers * 3000;
    prepare_dataset(*fs, other);
    BOOST_TEST((tree("w" + std::to_string(workers)) == want));
  }
  auto seeded = options({"in"}, "seeded");
  seeded.seed = 5;
  prepare_dataset(*fs, seeded);
  BOOST_TEST((documents("seeded") != documents("w1")));
  BOOST_TEST((document_set("seeded") == document_set("w1")));
}

BOOST_FIXTURE_TEST_CASE(kill_and_restart_and_append_give_the_same_bytes, Fixture) {
  write_file(folder / "in.jsonl", preference_lines(0, 40));
  write_file(folder / "more.json", "[" + conversation(0).dump() + "]");
  write_file(folder / "more.jsonl", preference_lines(40, 50));
  const auto prepare = [&](FileSystem& files, const std::string& output, const char* input) {
    auto chosen = options({input}, output, RecordFormat::Preference);
    chosen.validation_fraction = 0.3;
    chosen.unit_bytes = 3500;
    return prepare_dataset(files, chosen);
  };
  prepare(*fs, "want", "in.jsonl");
  prepare(*fs, "want", "more.jsonl");
  const auto want = tree("want");
  int64_t kills = 0, reused = 0;
  for (int64_t fatal = 1;; fatal += 3) {
    std::filesystem::remove_all(folder / "got");
    const pid_t child = fork();
    if (child == 0) {
      KillingFileSystem killing(*fs, fatal);
      prepare(killing, "got", "in.jsonl");
      prepare(killing, "got", "more.jsonl");
      _exit(0);
    }
    int status = 0;
    BOOST_REQUIRE(waitpid(child, &status, 0) == child);
    reused += prepare(*fs, "got", "in.jsonl").num_reused_units;
    prepare(*fs, "got", "more.jsonl");
    BOOST_REQUIRE_MESSAGE(tree("got") == want, "killed at call " << fatal);
    if (!WIFSIGNALED(status)) {
      BOOST_REQUIRE(WEXITSTATUS(status) == 0);
      break;
    }
    ++kills;
  }
  BOOST_TEST(kills > 15, kills << " kills");
  BOOST_TEST(reused > 5, reused << " units reused");
}

BOOST_FIXTURE_TEST_CASE(appending_asks_for_the_same_settings, Fixture) {
  write_file(folder / "a.jsonl", lines(0, 50));
  write_file(folder / "b.jsonl", lines(50, 80));
  write_file(folder / "other.jinja", "other" + kTemplate);
  prepare_dataset(*fs, options({"a.jsonl"}, "out"));
  const auto refused = [&](const std::vector<std::string>& words, auto&& change) {
    auto chosen = options({"b.jsonl"}, "out");
    change(chosen);
    check_fails(ErrorKind::Usage, words, [&] { prepare_dataset(*fs, chosen); });
  };
  refused({"--pack-length 256", "128"}, [](auto& o) { o.conversations.pack_length = 128; });
  refused({"--pack-length 256", "asked for 0"}, [](auto& o) { o.conversations.pack_length = 0; });
  refused({"last_turn"}, [](auto& o) { o.conversations.train_on = TrainOn::LastTurn; });
  refused({"cut", "drop"}, [](auto& o) { o.conversations.long_documents = LongDocuments::Drop; });
  refused({"--template-variable", "x"}, [](auto& o) { o.conversations.template_variables = {"x=1"}; });
  refused({"another chat template"},
          [&](auto& o) { o.conversations.chat_template = folder / "other.jinja"; });
  refused({"--format messages", "sharegpt"},
          [](auto& o) { o.conversations.format = RecordFormat::ShareGpt; });
  refused({"kind sft", "preference"}, [](auto& o) { o.conversations.format = RecordFormat::Preference; });
  refused({"kind sft", "kind text"}, [](auto& o) { o.conversations = {}; });
  BOOST_TEST(prepare_dataset(*fs, options({"a.jsonl", "b.jsonl"}, "out")).num_known_sources == 1);
  std::multiset<std::string> want;
  for (int i = 0; i < 80; ++i) want.insert(shown_conversation(i));
  BOOST_TEST((document_set("out") == want));
}

BOOST_FIXTURE_TEST_CASE(a_template_from_a_file_travels_with_the_dataset, Fixture) {
  write_file(folder / "a.jsonl", lines(0, 20));
  write_file(folder / "other.jinja",
             "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ greeting }}<|endoftext|>{% endfor %}");
  auto chosen = options({"a.jsonl"}, "out");
  chosen.conversations.chat_template = folder / "other.jinja";
  chosen.conversations.template_variables = {"greeting=\"!\""};
  prepare_dataset(*fs, chosen);
  BOOST_TEST(read_file(folder / "out/tokenizer/chat_template.jinja") == read_file(folder / "other.jinja"));
  const auto got = documents("out");
  // The template takes no notice of add_generation_prompt, so what comes after the question is learnt.
  BOOST_TEST(
      std::count(got.begin(), got.end(), "<user>" + question(1) + "!${<assistant>" + answer(1) + "!$}") == 1,
      got[0]);
  write_file(folder / "out/tokenizer/chat_template.jinja", "changed");
  check_fails(ErrorKind::BadInput, {"chat template has digest"},
              [&] { verify_dataset(*fs, folder / "out", 1); });
}

BOOST_FIXTURE_TEST_CASE(what_is_learnt_can_be_chosen, Fixture) {
  write_file(folder / "a.jsonl", conversation(4).dump());
  const auto only = [&](TrainOn train_on) {
    auto chosen = options({"a.jsonl"}, std::string(name(train_on)));
    chosen.conversations.train_on = train_on;
    prepare_dataset(*fs, chosen);
    return documents(std::string(name(train_on))).at(0);
  };
  const std::string before = "[user]" + question(4) + "$[assistant]" + answer(4) + "$[user]more$[assistant]";
  BOOST_TEST(only(TrainOn::AssistantTurns) == shown_conversation(4));
  BOOST_TEST(only(TrainOn::LastTurn) == before + "{no$}");
  BOOST_TEST(only(TrainOn::Everything) == "{" + before + "no$}");
}

BOOST_FIXTURE_TEST_CASE(prompts_and_answers_need_no_template, Fixture) {
  write_byte_tokenizer(folder / "bare", "<s>");  // its post-processor adds a bos
  write_file(folder / "a.jsonl", R"({"question": "1+1?", "answer": " 2"})");
  auto chosen = options({"a.jsonl"}, "out", RecordFormat::PromptCompletion);
  chosen.conversations.fields = {.prompt = "question", .response = "answer"};
  chosen.tokenizer = folder / "bare";
  chosen.conversations.pack_length = 0;
  prepare_dataset(*fs, chosen);
  const auto dataset = Dataset::open(*fs, folder / "out");
  BOOST_TEST((dataset->document(0) == std::vector<int32_t>{257, '1' - '!', '+' - '!', '1' - '!', '?' - '!',
                                                           dataset->document(0)[5], '2' - '!', kEos}) ==
             false);
  BOOST_TEST((dataset->document_loss_mask(0) == std::vector<uint8_t>{0, 0, 0, 0, 0, 1, 1, 1}));
  BOOST_TEST(dataset->document(0).front() == 257);
  BOOST_TEST(dataset->document(0).back() == kEos);
  BOOST_TEST(dataset->manifest().fine_tuning->chat_template_digest.empty());
  // With a template the strings are a user's and an assistant's turn, unless that is not wanted.
  chosen.tokenizer = folder / "tok";
  chosen.output = folder / "templated";
  prepare_dataset(*fs, chosen);
  BOOST_TEST(documents("templated").at(0) == "[user]1+1?$[assistant]{ 2$}");
  chosen.output = folder / "none";
  chosen.conversations.chat_template = "none";
  prepare_dataset(*fs, chosen);
  BOOST_TEST(documents("none").at(0) == "1+1?{ 2$}");
}

BOOST_FIXTURE_TEST_CASE(long_conversations_are_cut_or_left_out, Fixture) {
  const json long_one{
      {"messages",
       {{{"role", "user"}, {"content", std::string(300, 'u')}}, {{"role", "assistant"}, {"content", "x"}}}}};
  write_file(folder / "a.jsonl", lines(0, 9) + long_one.dump() + "\n");
  const PrepareReport cut = prepare_dataset(*fs, options({"a.jsonl"}, "cut"));
  BOOST_TEST(cut.num_documents == 10);
  BOOST_TEST(cut.num_cut_documents == 1);
  BOOST_TEST(cut.num_untrained_documents == 1);  // its answer lies behind the cut
  BOOST_TEST(document_set("cut").count("[user]" + std::string(kPack - 6, 'u')) == 1u);
  auto chosen = options({"a.jsonl"}, "drop");
  chosen.conversations.long_documents = LongDocuments::Drop;
  const PrepareReport drop = prepare_dataset(*fs, chosen);
  BOOST_TEST(drop.num_documents == 9);
  BOOST_TEST(drop.num_dropped_documents == 1);
}

BOOST_FIXTURE_TEST_CASE(pairs_stay_together, Fixture) {
  write_file(folder / "a.jsonl",
             preference_lines(0, 200) +
                 json({{"prompt", "p"}, {"chosen", std::string(900, 'c')}, {"rejected", "r"}}).dump());
  auto chosen = options({"a.jsonl"}, "out", RecordFormat::Preference);
  chosen.conversations.pack_length = kPairPack;
  const PrepareReport report = prepare_dataset(*fs, chosen);
  BOOST_TEST(report.num_documents == 402);
  BOOST_TEST(report.num_cut_documents == 1);
  const auto dataset = Dataset::open(*fs, folder / "out");
  BOOST_TEST(dataset->kind() == "preference");
  const auto got = documents("out");
  std::multiset<std::string> pairs, want;
  for (size_t i = 0; i < got.size(); i += 2) pairs.insert(got[i] + " > " + got[i + 1]);
  for (int i = 0; i < 200; ++i)
    want.insert("[user]" + question(i) + "$[assistant]{" + answer(i) + "$} > [user]" + question(i) +
                "$[assistant]{" + answer(i + 1000) + "$}");
  const std::string rejected = "[user]p$[assistant]{r$}";  // 21 tokens; the other keeps what is left
  want.insert("[user]p$[assistant]{" + std::string(kPairPack - 21 - 19, 'c') + "} > " + rejected);
  BOOST_TEST((pairs == want));
  // In a sample, documents 2k and 2k + 1 are a pair; what pads the window belongs to the last one.
  std::vector<WeightedDataset> datasets;
  datasets.push_back({Dataset::open(*fs, folder / "out"), 1});
  const SampleStream stream(std::move(datasets), {.seq_length = kPairPack, .seed = 1});
  size_t seen = 0;
  for (int64_t i = 0; i < stream.windows_per_epoch(); ++i) {
    const Sample sample = stream.get(i);
    BOOST_REQUIRE(sample.document_starts.size() % 2 == 0);
    for (size_t d = 0; d < sample.document_starts.size(); d += 2) {
      const auto piece = [&](size_t k) {
        const auto begin = static_cast<size_t>(sample.document_starts[k]);
        const size_t end = k + 1 < sample.document_starts.size()
                               ? static_cast<size_t>(sample.document_starts[k + 1])
                               : kPairPack;
        std::vector<uint8_t> mask{0};  // target t + 1 of position t
        mask.insert(mask.end(), sample.loss_mask.begin() + static_cast<std::ptrdiff_t>(begin),
                    sample.loss_mask.begin() + static_cast<std::ptrdiff_t>(end) - 1);
        return shown({sample.tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                      sample.tokens.begin() + static_cast<std::ptrdiff_t>(end)},
                     mask);
      };
      BOOST_REQUIRE_MESSAGE(want.count(piece(d) + " > " + piece(d + 1)) == 1, piece(d)
                                                                                  << " > " << piece(d + 1));
      ++seen;
    }
  }
  BOOST_TEST(seen == 201u);
}

BOOST_FIXTURE_TEST_CASE(every_bin_is_a_window, Fixture) {
  write_file(folder / "a.jsonl", lines(0, 300));
  prepare_dataset(*fs, options({"a.jsonl"}, "out"));
  const auto open_stream = [&](int64_t seq_length, BorderTargets borders) {
    std::vector<WeightedDataset> datasets;
    datasets.push_back({Dataset::open(*fs, folder / "out"), 1});
    return SampleStream(std::move(datasets),
                        {.seq_length = seq_length, .seed = 1, .border_targets = borders});
  };
  const auto dataset = Dataset::open(*fs, folder / "out");
  int64_t trained = 0, bins = 0;
  for (const auto& shard : dataset->manifest().shards) {
    trained += *shard.num_trained_tokens;
    bins += (shard.num_tokens - 1) / kPack;
  }
  for (const auto borders : {BorderTargets::Skip, BorderTargets::Count}) {
    const auto stream = open_stream(kPack, borders);
    BOOST_TEST(stream.windows_per_epoch() == bins);
    int64_t targets = 0;
    for (int64_t i = 0; i < bins; ++i) {
      const Sample sample = stream.get(i);
      targets += std::accumulate(sample.loss_mask.begin(), sample.loss_mask.end(), int64_t{0});
      BOOST_REQUIRE(sample.document_starts.front() == 0);
      // A window ends where a conversation does.
      BOOST_REQUIRE(sample.tokens[kPack - 1] == kEos);
    }
    BOOST_TEST(targets == trained);
  }
  const auto twice = open_stream(2 * kPack, BorderTargets::Skip);
  BOOST_TEST(twice.windows_per_epoch() <= bins / 2);
  BOOST_TEST(twice.windows_per_epoch() >= (bins - dataset->num_shards()) / 2);
  for (const int64_t wrong : {kPack / 2, kPack + 1}) {
    check_fails(ErrorKind::Config, {"bins of 256", "--pack-length " + std::to_string(wrong)},
                [&] { open_stream(wrong, BorderTargets::Skip); });
    check_fails(ErrorKind::Config, {"bins of 256"}, [&] {
      std::vector<std::unique_ptr<Dataset>> validation;
      validation.push_back(Dataset::open(*fs, folder / "out"));
      ValidationStream(std::move(validation), wrong);
    });
  }
}

BOOST_FIXTURE_TEST_CASE(bad_records_name_their_place_or_are_counted, Fixture) {
  write_file(folder / "lines.jsonl", lines(0, 3) + "{\"messages\": 3}\n" + lines(3, 5) + "nonsense\n");
  write_file(folder / "array.json", "[\n" + conversation(0).dump(2) + ",\n {\"x\": \"a\\n]\"},\n 7, " +
                                        conversation(1).dump(2) + "\n]\n");
  check_fails(ErrorKind::BadInput, {"lines.jsonl:4: field 'messages' is not a list", "--skip-bad"},
              [&] { prepare_dataset(*fs, options({"lines.jsonl"}, "out")); });
  check_fails(ErrorKind::BadInput, {"array.json: record 2: field 'messages' is missing"},
              [&] { prepare_dataset(*fs, options({"array.json"}, "out")); });
  auto chosen = options({"lines.jsonl", "array.json"}, "out");
  chosen.bad_lines = BadLines::Skip;
  const PrepareReport report = prepare_dataset(*fs, chosen);
  BOOST_TEST(report.num_documents == 7);
  BOOST_TEST(report.num_skipped_lines == 4);
  // A template that refuses a conversation is a bad record too.
  write_file(folder / "tok/chat_template.jinja", "{{ raise_exception('no turns here') }}");
  write_file(folder / "one.jsonl", lines(0, 1));
  check_fails(ErrorKind::BadInput, {"one.jsonl:1: ", "no turns here"},
              [&] { prepare_dataset(*fs, options({"one.jsonl"}, "new")); });
}

BOOST_FIXTURE_TEST_CASE(json_files_hold_arrays_or_objects, Fixture) {
  const auto prepared = [&](const std::string& text) {
    write_file(folder / "x.json", text);
    std::filesystem::remove_all(folder / "x");
    return prepare_dataset(*fs, options({"x.json"}, "x")).num_documents;
  };
  const std::string one = conversation(1).dump(), two = conversation(2).dump(3);
  BOOST_TEST(prepared("[" + one + "]") == 1);
  BOOST_TEST(prepared(" \n[ " + two + " , " + one + " ] \n") == 2);
  BOOST_TEST(prepared(two) == 1);
  BOOST_TEST(prepared(one + "\n" + two + "\n\n" + one + "\n") == 3);
  BOOST_TEST(prepared("\xEF\xBB\xBF[" + one + "]") == 1);
  const auto refused = [&](const std::string& text, const std::string& words) {
    check_fails(ErrorKind::BadInput, {words}, [&] { prepared(text); });
  };
  refused("[" + one, "ends inside record 1");
  refused("[" + one + ",", "ends inside its array, after record 1");
  refused("[" + one + "," + two.substr(0, 40), "ends inside record 2");
  refused("[" + one + "] x", "something follows the array");
  refused("[" + one + ",," + one + "]", "record 2: malformed JSON");
  refused("[]", "no document");
  refused("", "no document");
  refused("[1, 2]", "record 1: not a JSON object");
}

BOOST_FIXTURE_TEST_CASE(unfit_options_are_clear_errors, Fixture) {
  write_file(folder / "a.jsonl", lines(0, 5));
  const auto refused = [&](ErrorKind kind, const std::vector<std::string>& words, auto&& change) {
    auto chosen = options({"a.jsonl"}, "out");
    change(chosen);
    check_fails(kind, words, [&] { prepare_dataset(*fs, chosen); });
  };
  refused(ErrorKind::Usage, {"--pack-length N", "--no-packing"},
          [](auto& o) { o.conversations.pack_length.reset(); });
  refused(ErrorKind::Usage, {"--pack-length is 1"}, [](auto& o) { o.conversations.pack_length = 1; });
  refused(ErrorKind::Usage, {"--format"}, [](auto& o) { o.conversations.format = RecordFormat::Text; });
  refused(ErrorKind::Usage, {"expected key=value"},
          [](auto& o) { o.conversations.template_variables = {"x"}; });
  refused(ErrorKind::Usage, {"'messages'"},
          [](auto& o) { o.conversations.template_variables = {"messages=1"}; });
  refused(ErrorKind::Usage, {"none"}, [](auto& o) { o.conversations.chat_template = "none"; });
  refused(ErrorKind::BadInput, {"no such file"}, [](auto& o) { o.conversations.chat_template = "/nowhere"; });
  refused(ErrorKind::Usage, {"--train-on-prompt"}, [](auto& o) {
    o.conversations.format = RecordFormat::Preference;
    o.conversations.train_on = TrainOn::Everything;
  });
  std::filesystem::remove(folder / "tok/chat_template.jinja");
  refused(ErrorKind::BadInput, {"no chat template", "--chat-template FILE"}, [](auto&) {});
  write_file(folder / "tok/chat_template.jinja", "{% unknown_tag %}");
  refused(ErrorKind::BadInput, {"chat template"}, [](auto&) {});
}

BOOST_FIXTURE_TEST_CASE(a_damaged_mask_is_found, Fixture) {
  write_file(folder / "a.jsonl", lines(0, 20));
  prepare_dataset(*fs, options({"a.jsonl"}, "out"));
  const auto info = Dataset::open(*fs, folder / "out")->manifest().shards[0];
  std::string bytes = read_file(folder / "out/shard-00000.h5");
  bytes[static_cast<size_t>(info.loss_mask->offset)] ^= 1;
  write_file(folder / "out/shard-00000.h5", bytes);
  check_fails(ErrorKind::BadInput, {"shard-00000.h5", "/loss_mask has"},
              [&] { verify_dataset(*fs, folder / "out", 1); });
}

BOOST_FIXTURE_TEST_CASE(manifests_are_read_strictly_and_old_ones_still, Fixture) {
  write_file(folder / "a.jsonl", lines(0, 20));
  prepare_dataset(*fs, options({"a.jsonl"}, "out"));
  const std::string text = read_file(folder / "out/dataset.json");
  BOOST_TEST(manifest_to_json(manifest_from_json(text, "m")) == text);
  const auto refused = [&](const std::vector<std::string>& words, auto&& change) {
    json manifest = json::parse(text);
    change(manifest);
    check_fails(ErrorKind::BadInput, words, [&] { manifest_from_json(manifest.dump(), "m"); });
  };
  refused({"kind is 'rl'"}, [](json& m) { m["kind"] = "rl"; });
  refused({"unknown key"}, [](json& m) { m["kind"] = "text"; });
  refused({"unknown key"}, [](json& m) { m.erase("kind"); });
  refused({"'pack_length' is missing"}, [](json& m) { m.erase("pack_length"); });
  refused({"not a multiple of pack_length 255"}, [](json& m) { m["pack_length"] = 255; });
  refused({"no loss_mask"}, [](json& m) { m["shards"][0].erase("num_trained_tokens"); });
  refused({"record_format"}, [](json& m) { m["record_format"] = "chatml"; });
  write_dataset(*fs, folder / "old", {some_documents(5, 1)});
  const auto old = Dataset::open(*fs, folder / "old");
  BOOST_TEST(old->kind() == "text");
  BOOST_TEST(old->pack_length() == 0);
  BOOST_TEST(read_file(folder / "old/dataset.json").find("kind") == std::string::npos);
  const auto mask = old->document_loss_mask(0);
  BOOST_TEST(std::accumulate(mask.begin(), mask.end(), int64_t{0}) == static_cast<int64_t>(mask.size()));
}
