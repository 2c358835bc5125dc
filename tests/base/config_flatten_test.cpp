// Canonical text, hash and resume difference of configurations.
#include "base/config_flatten.h"

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstdlib>
#include <limits>

using namespace hearth;

namespace {
struct Item {
  std::string path = "a";
  double weight = 1.0;
  template <class V>
  void visit(V&& v) {
    v("path", path, OnResume::MayChange, "");
    v("weight", weight, OnResume::MayChange, "");
  }
};
struct Inner {
  double lr = 3e-4;
  std::optional<int64_t> horizon;
  template <class V>
  void visit(V&& v) {
    v("lr", lr, OnResume::MustConfirm, "peak");
    v("horizon", horizon, OnResume::MayChange, "");
  }
};
struct Whole {
  Inner inner;
  std::vector<Item> items = {{}, {"b \"q\"", 0.5}};
  std::vector<std::string> words = {"x", "y"};
  bool on = true;
  int64_t seed = 7;
  template <class V>
  void visit(V&& v) {
    v("inner", inner, OnResume::Frozen, "");
    v("items", items, OnResume::MayChange, "");
    v("words", words, OnResume::MayChange, "");
    v("on", on, OnResume::MayChange, "");
    v("seed", seed, OnResume::Frozen, "");
  }
};
std::vector<std::string> keys_of(const std::vector<FlatKey>& flat) {
  std::vector<std::string> keys;
  for (const auto& key : flat) keys.push_back(key.key);
  return keys;
}
}  // namespace

BOOST_AUTO_TEST_CASE(flat_list_has_dotted_keys_and_canonical_values) {
  const auto flat = flatten_config(Whole{});
  BOOST_TEST(keys_of(flat) ==
                 (std::vector<std::string>{"inner.lr", "inner.horizon", "items", "words", "on", "seed"}),
             boost::test_tools::per_element());
  BOOST_TEST(flat[0].value == "0.0003");
  BOOST_TEST((flat[0].on_resume == OnResume::MustConfirm));
  BOOST_TEST(flat[0].doc == "peak");
  BOOST_TEST(flat[1].value == "null");
  BOOST_TEST(flat[2].value == R"([{"path": "a", "weight": 1.0}, {"path": "b \"q\"", "weight": 0.5}])");
  BOOST_TEST(flat[3].value == R"(["x", "y"])");
  BOOST_TEST(flat[4].value == "true");
  BOOST_TEST(flat[5].value == "7");
}

BOOST_AUTO_TEST_CASE(doubles_keep_every_bit_and_look_like_doubles) {
  BOOST_TEST(canonical_text(1.0) == "1.0");
  BOOST_TEST(canonical_text(3e-5) == "3.0e-05");
  BOOST_TEST(canonical_text(-0.0) == "-0.0");
  BOOST_TEST(canonical_text(std::nan("")) == ".nan");
  BOOST_TEST(canonical_text(-std::numeric_limits<double>::infinity()) == "-.inf");
  for (const double value : {0.1, 1.0 / 3, 1e22, 1.7976931348623157e308, 5e-324, 123456789.123456789})
    BOOST_TEST(std::strtod(canonical_text(value).c_str(), nullptr) == value);
}

BOOST_AUTO_TEST_CASE(hash_follows_values_only) {
  Whole a, b;
  BOOST_TEST(config_hash(flatten_config(a)) == config_hash(flatten_config(b)));
  b.items[1].weight = std::nextafter(0.5, 1.0);
  BOOST_TEST(config_hash(flatten_config(a)) != config_hash(flatten_config(b)));
}

BOOST_AUTO_TEST_CASE(resume_diff_names_changed_lost_and_new_keys) {
  auto before = flatten_config(Whole{});
  Whole changed;
  changed.inner.lr = 1e-3;
  changed.seed = 8;
  auto now = flatten_config(changed);
  before.push_back({"gone", "1", OnResume::Frozen, ""});
  now.push_back({"fresh", "2", OnResume::Frozen, ""});
  const std::vector<ConfigChange> want = {{"inner.lr", "0.0003", "0.001", OnResume::MustConfirm},
                                          {"seed", "7", "8", OnResume::Frozen},
                                          {"fresh", "", "2", OnResume::MayChange},
                                          {"gone", "1", "", OnResume::MayChange}};
  BOOST_TEST((resume_diff(before, now) == want));
  BOOST_TEST(resume_diff(now, now).empty());
}
