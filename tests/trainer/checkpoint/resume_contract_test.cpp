// The resume contract as a table: one change each, and what it means.
#include "trainer/checkpoint/resume_contract.h"

#include <boost/test/data/monomorphic.hpp>
#include <boost/test/data/test_case.hpp>
#include <boost/test/unit_test.hpp>
#include <functional>

#include "base/error.h"

using namespace hearth;
namespace bdata = boost::unit_test::data;

namespace {

RunDescription description() {
  return {{{"model.hidden_size", "64", OnResume::Frozen, ""},
           {"optimizer.lr", "0.0003", OnResume::MayChange, ""},
           {"training.seed", "1234", OnResume::MustConfirm, ""},
           {"data.train", "[{\"path\": \"shards/a\"}]", OnResume::MustConfirm, ""}},
          "5f1c",
          "shards/a  41 shards, 88,120 tokens",
          "70ce4",
          "pp=1 dp=4 cp=1 ep=1 tp=1"};
}

struct Row {
  std::string what;
  std::function<void(RunDescription&)> change;
  std::vector<std::string> confirmed;
  std::vector<std::string> refused;  // keys; empty: the run goes on
  std::string message;               // part of the error, or of the printed differences
};
std::ostream& operator<<(std::ostream& out, const Row& row) {
  return out << row.what;
}

const std::vector<Row> kRows{
    {"nothing changes", [](RunDescription&) {}, {}, {}, ""},
    {"a frozen key",
     [](RunDescription& d) { d.config[0].value = "128"; },
     {},
     {"model.hidden_size"},
     "model.init_from"},
    {"a frozen key cannot be confirmed",
     [](RunDescription& d) { d.config[0].value = "128"; },
     {"model.hidden_size"},
     {"model.hidden_size"},
     "frozen"},
    {"a key that may change",
     [](RunDescription& d) { d.config[1].value = "0.0001"; },
     {},
     {},
     "allowed    optimizer.lr: 0.0003 -> 0.0001"},
    {"a key to confirm",
     [](RunDescription& d) { d.config[2].value = "1"; },
     {},
     {"training.seed"},
     "--confirm training.seed"},
    {"a confirmed key",
     [](RunDescription& d) { d.config[2].value = "1"; },
     {"training.seed"},
     {},
     "confirmed  training.seed: 1234 -> 1"},
    {"a confirmed section",
     [](RunDescription& d) { d.config[2].value = "1"; },
     {"training"},
     {},
     "confirmed"},
    {"a name that only begins alike",
     [](RunDescription& d) { d.config[2].value = "1"; },
     {"training.see"},
     {"training.seed"},
     "to confirm"},
    {"other data",
     [](RunDescription& d) { d.data_digest = "77a0"; },
     {},
     {"data contents"},
     "--confirm data.train"},
    {"other data, confirmed",
     [](RunDescription& d) { d.data_digest = "77a0"; },
     {"data.train"},
     {},
     "the ledger goes on"},
    {"another tokenizer", [](RunDescription& d) { d.tokenizer_digest = "x"; }, {}, {"tokenizer"}, "70ce4"},
    {"another tokenizer cannot be confirmed",
     [](RunDescription& d) { d.tokenizer_digest = "x"; },
     {"tokenizer"},
     {"tokenizer"},
     "frozen"},
    {"another mesh",
     [](RunDescription& d) { d.mesh = "pp=1 dp=2 cp=1 ep=1 tp=1"; },
     {},
     {},
     "no longer bit for bit"},
    {"a new key of a newer Hearth",
     [](RunDescription& d) {
       d.config.push_back({"optimizer.new", "1", OnResume::Frozen, ""});
     },
     {},
     {},
     "optimizer.new: (none) -> 1"},
    {"a key that a newer Hearth dropped",
     [](RunDescription& d) { d.config.erase(d.config.begin()); },
     {},
     {},
     "model.hidden_size: 64 -> (none)"},
    {"two refusals at once",
     [](RunDescription& d) { d.config[0].value = "1", d.config[2].value = "2"; },
     {},
     {"model.hidden_size", "training.seed"},
     "2 of 2 changes are not allowed"},
};

}  // namespace

BOOST_DATA_TEST_CASE(changes_mean_what_the_table_says, bdata::make(kRows), row) {
  RunDescription now = description();
  row.change(now);
  const auto changes = compare_for_resume(description(), now, row.confirmed);
  std::vector<std::string> refused;
  for (const auto& change : changes)
    if (change.refused()) refused.push_back(change.key);
  BOOST_TEST(refused == row.refused, boost::test_tools::per_element());
  const std::string printed = describe_changes(changes);
  if (row.refused.empty()) {
    require_resumable(changes, "runs/x/checkpoints/step_00000010");
    BOOST_TEST(printed.find(row.message) != std::string::npos, printed);
    return;
  }
  BOOST_CHECK_EXCEPTION(
      require_resumable(changes, "runs/x/checkpoints/step_00000010"), Error, [&](const Error& error) {
        BOOST_TEST_MESSAGE(error.what());
        return exit_code(error.kind()) == 3 && error.message().find(row.message) != std::string::npos &&
               error.message().find("step_00000010") != std::string::npos &&
               error.message().find("nothing is lost") != std::string::npos;
      });
}

BOOST_AUTO_TEST_CASE(message_of_changed_data_says_what_to_do) {
  RunDescription now = description();
  now.data_digest = "77a0";
  now.data_text = "shards/a  40 shards, 85,901 tokens";
  try {
    require_resumable(compare_for_resume(description(), now, {}), "runs/x/checkpoints/step_00012000");
    BOOST_FAIL("accepted");
  } catch (const Error& error) {
    BOOST_TEST(error.message() ==
               "cannot resume: the training data is not the data of the checkpoint\n"
               "  checkpoint   runs/x/checkpoints/step_00012000  (complete, digests match: nothing is lost)\n"
               "  to confirm   data contents\n"
               "    was        shards/a  41 shards, 88,120 tokens, digest 5f1c\n"
               "    this job   shards/a  40 shards, 85,901 tokens, digest 77a0\n"
               "  do one of    restore what was there  |  --confirm data.train  |  --resume never");
  }
}
