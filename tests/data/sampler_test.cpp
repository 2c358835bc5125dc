// data/permutation, blend, ledger, sampler, prefetcher: each window once, whatever the number of ranks and
// resumes.
#include "data/sampler.h"

#include <algorithm>
#include <map>
#include <set>

#include "data/prefetcher.h"
#include "tests/data/data_fixture.h"

using namespace hearth;
using namespace hearth::testing;

namespace {

struct Fixture {
  TempFolder folder;
  std::unique_ptr<FileSystem> fs = make_posix_file_system();

  void make(const std::string& name, int num_shards, int salt) {
    std::vector<std::vector<std::vector<int32_t>>> shards;
    for (int i = 0; i < num_shards; ++i) shards.push_back(some_documents(30 + i, salt * 100 + i));
    write_dataset(*fs, folder / name, shards);
  }
  SampleStream open(const std::vector<std::pair<std::string, double>>& mixture, DataLedger ledger = {},
                    uint64_t seed = 5) {
    std::vector<WeightedDataset> datasets;
    for (const auto& [name, weight] : mixture)
      datasets.push_back({Dataset::open(*fs, folder / name), weight});
    return SampleStream(std::move(datasets), {.seq_length = 16, .seed = seed}, std::move(ledger));
  }
};

using WindowId = std::tuple<std::string, int64_t, int64_t>;  // dataset, shard, window
WindowId id_of(const SampleStream& stream, const Sample& sample) {
  const Provenance& p = sample.provenance;
  return {stream.dataset(p.dataset).id(), p.shard, p.window};
}

// Reads samples [first, last) and counts how often each window came.
void count_windows(const SampleStream& stream, int64_t first, int64_t last, std::map<WindowId, int>& seen) {
  for (int64_t i = first; i < last; ++i) ++seen[id_of(stream, stream.get(i))];
}

}  // namespace

BOOST_AUTO_TEST_CASE(permutation_is_a_bijection_with_an_inverse) {
  for (const int64_t size :
       {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 97, 127, 128, 129, 1000, 4096, 4099, 65537}) {
    for (const uint64_t key : {uint64_t{0}, uint64_t{1}, ~uint64_t{0}}) {
      const Permutation permutation(size, key);
      std::vector<bool> hit(static_cast<size_t>(size));
      for (int64_t i = 0; i < size; ++i) {
        const int64_t value = permutation(i);
        BOOST_REQUIRE(value >= 0 && value < size);
        BOOST_REQUIRE(!hit[static_cast<size_t>(value)]);
        hit[static_cast<size_t>(value)] = true;
        BOOST_REQUIRE(permutation.inverse(value) == i);
      }
    }
  }
  const Permutation huge(int64_t{1} << 62, 3);
  BOOST_TEST(huge.inverse(huge((int64_t{1} << 62) - 1)) == (int64_t{1} << 62) - 1);
}

// A shuffled order: the mean distance of neighbours is n / 3, and few elements stay in place (one expected).
BOOST_AUTO_TEST_CASE(permutation_shuffles) {
  const int64_t size = 10007;
  const Permutation a(size, 1), b(size, 2);
  double distance = 0;
  int64_t fixed = 0, equal = 0;
  for (int64_t i = 0; i + 1 < size; ++i) {
    distance += std::abs(static_cast<double>(a(i + 1) - a(i)));
    fixed += a(i) == i;
    equal += a(i) == b(i);
  }
  // standard deviation of |x - y| for uniform x, y is n / sqrt(18); five standard errors
  const double n = static_cast<double>(size);
  BOOST_TEST(std::abs(distance / n - n / 3) <= 5 * n / std::sqrt(18.0 * n) + n / 1000);
  BOOST_TEST(fixed <= 10);
  BOOST_TEST(equal <= 10);
}

BOOST_AUTO_TEST_CASE(blend_meets_the_weights_in_every_prefix) {
  const std::vector<double> weights{0.7, 0.2, 0.1};
  const Blend blend(weights);
  std::vector<int64_t> taken(3);
  for (int64_t i = 0; i < 25000; ++i) {
    const auto slot = blend.slot(i);
    const auto source = static_cast<size_t>(slot.source);
    BOOST_REQUIRE(slot.ordinal == taken[source]);
    ++taken[source];
    for (size_t s = 0; s < 3; ++s) {
      BOOST_REQUIRE(std::abs(static_cast<double>(taken[s]) - weights[s] * static_cast<double>(i + 1)) <= 1.0);
      if (i % 997 == 0) BOOST_REQUIRE(blend.count(static_cast<int32_t>(s), i + 1) == taken[s]);
    }
  }
  BOOST_TEST(blend.count(2, 30000) == 3000);
  const Blend tiny(std::vector<double>{1.0, 1e-9});  // at least one slot per cycle
  BOOST_TEST(tiny.count(1, 10000) == 1);
  const Blend many(std::vector<double>(4096, 1e-3));
  BOOST_TEST(many.count(4095, 10000) >= 1);
  check_fails(ErrorKind::Config, {"nan"}, [] { Blend(std::vector<double>{1.0, std::nan("")}); });
  check_fails(ErrorKind::Config, {"> 0"}, [] { Blend(std::vector<double>{0.0}); });
}

BOOST_FIXTURE_TEST_CASE(an_epoch_has_every_window_once_and_its_tokens, Fixture) {
  make("a", 3, 1);
  const auto stream = open({{"a", 1}});
  const auto dataset = Dataset::open(*fs, folder / "a");
  const int64_t windows = stream.windows_per_epoch();
  BOOST_REQUIRE(windows > 50);
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::map<WindowId, int> seen;
    count_windows(stream, epoch * windows, (epoch + 1) * windows, seen);
    BOOST_TEST(static_cast<int64_t>(seen.size()) == windows);
  }
  std::vector<std::vector<int32_t>> orders(2);
  for (int64_t i = 0; i < windows; ++i) {
    const Sample sample = stream.get(i);
    std::vector<int32_t> want(17);
    dataset->shard(sample.provenance.shard).read_tokens(sample.provenance.window * 16, want);
    BOOST_REQUIRE(sample.tokens == want);
    // A document begins after each 999; its first token is no target.
    std::vector<int32_t> starts{0};
    for (int32_t t = 1; t <= 16; ++t) {
      const bool border = want[static_cast<size_t>(t - 1)] == 999;
      if (border && t < 16) starts.push_back(t);
      BOOST_REQUIRE(sample.loss_mask[static_cast<size_t>(t - 1)] == (border ? 0 : 1));
    }
    BOOST_REQUIRE(sample.document_starts == starts);
  }
  BOOST_TEST(stream.get(0).provenance.window != stream.get(windows).provenance.window);  // epochs differ
  BOOST_TEST(stream.get(3).tokens != open({{"a", 1}}, {}, 6).get(3).tokens);             // seeds differ
}

BOOST_FIXTURE_TEST_CASE(the_stream_does_not_depend_on_the_number_of_ranks, Fixture) {
  make("a", 2, 1);
  for (const int64_t ranks : {1, 2, 4, 8}) {
    std::set<int64_t> samples;
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const BatchShape shape{.global_batch_size = 16,
                             .micro_batch_size = 2,
                             .data_parallel_size = ranks,
                             .data_parallel_rank = rank};
      for (int64_t micro = 0; micro < shape.micro_batches_per_step(); ++micro) {
        for (const int64_t i : micro_batch_samples(shape, 3, micro)) BOOST_REQUIRE(samples.insert(i).second);
      }
    }
    BOOST_TEST(samples.size() == 16u);
    BOOST_TEST(*samples.begin() == 48);
    BOOST_TEST(*samples.rbegin() == 63);
  }
  check_fails(ErrorKind::Config, {"16", "3"}, [] {
    micro_batch_samples({.global_batch_size = 16, .micro_batch_size = 1, .data_parallel_size = 3}, 0, 0);
  });
}

BOOST_FIXTURE_TEST_CASE(resume_continues_the_same_stream, Fixture) {
  make("a", 2, 1);
  make("b", 1, 2);
  const std::vector<std::pair<std::string, double>> mixture{{"a", 0.75}, {"b", 0.25}};
  const auto whole = open(mixture);
  const int64_t windows = whole.windows_per_epoch();
  for (const int64_t cut : {int64_t{0}, int64_t{1}, int64_t{7}, windows - 1, windows, 2 * windows + 3}) {
    const DataLedger ledger =
        ledger_from_json(nlohmann::json::parse(ledger_to_json(whole.ledger_after(cut)).dump()));
    BOOST_TEST((ledger == whole.ledger_after(cut)));
    const auto resumed = open(mixture, ledger);
    BOOST_TEST(resumed.first_sample() == cut);
    for (int64_t i = cut; i < cut + 40; ++i) BOOST_REQUIRE(resumed.get(i) == whole.get(i));
    BOOST_TEST((resumed.ledger_after(cut + 2 * windows) == whole.ledger_after(cut + 2 * windows)));
    audit_ledger(ledger);
    audit_succession(ledger, resumed.ledger_after(cut + 2 * windows));
  }
  BOOST_CHECK_THROW(open(mixture, whole.ledger_after(5)).get(4), Error);
}

BOOST_FIXTURE_TEST_CASE(appended_shards_repeat_and_skip_nothing, Fixture) {
  std::vector<std::vector<std::vector<int32_t>>> shards{some_documents(30, 1)};
  write_dataset(*fs, folder / "a", shards);
  auto ledger = DataLedger{};
  std::map<WindowId, int> seen;
  int64_t at = 0;
  for (int append = 0; append < 4; ++append) {  // shards arrive while the epoch runs
    const auto stream = open({{"a", 1}}, ledger);
    count_windows(stream, at, at + 11, seen);
    at += 11;
    ledger = stream.ledger_after(at);
    audit_ledger(ledger);
    shards.push_back(some_documents(20 + append, 10 + append));
    write_dataset(*fs, folder / "a", shards);
  }
  const auto stream = open({{"a", 1}}, ledger);
  const int64_t windows = stream.windows_per_epoch();
  count_windows(stream, at, windows, seen);
  BOOST_TEST(static_cast<int64_t>(seen.size()) == windows);
  for (const auto& [window, count] : seen) BOOST_REQUIRE(count == 1);
  const DataLedger end = stream.ledger_after(3 * windows + 5);
  BOOST_TEST(audit_ledger(end).epochs_finished == 3);
  audit_succession(ledger, end);
  BOOST_TEST(ledger_to_json(end)["datasets"][0]["epochs"][0]["generations"].size() == 5u);
  std::map<WindowId, int> second;
  count_windows(stream, windows, 2 * windows, second);
  BOOST_TEST(static_cast<int64_t>(second.size()) == windows);
}

BOOST_FIXTURE_TEST_CASE(a_changed_mixture_repeats_and_skips_nothing, Fixture) {
  make("a", 2, 1), make("b", 1, 2), make("c", 1, 3);
  std::map<WindowId, int> seen;
  auto ledger = DataLedger{};
  int64_t at = 0;
  const std::vector<std::vector<std::pair<std::string, double>>> mixtures{{{"a", 1}, {"b", 1}},
                                                                          {{"a", 1}, {"b", 3}},
                                                                          {{"c", 1}, {"a", 2}},
                                                                          {{"a", 2}, {"c", 1}},
                                                                          {{"b", 1}, {"a", 1}}};
  for (const auto& mixture : mixtures) {
    const auto stream = open(mixture, ledger);
    count_windows(stream, at, at + 9, seen);
    at += 9;
    const DataLedger next = stream.ledger_after(at);
    audit_ledger(next);
    if (at > 9) audit_succession(ledger, next);
    ledger = next;
  }
  BOOST_TEST(seen.size() == 45u);  // no epoch has ended, so no window may come twice
  BOOST_TEST(ledger.mixtures.size() == 5u);
}

BOOST_FIXTURE_TEST_CASE(resume_refuses_other_data, Fixture) {
  make("a", 2, 1);
  const auto stream = open({{"a", 1}});
  const DataLedger ledger = stream.ledger_after(10);
  check_fails(ErrorKind::Config, {"seed"}, [&] { open({{"a", 1}}, ledger, 6); });
  check_fails(ErrorKind::Config, {"twice"}, [&] { open({{"a", 1}, {"a", 1}}, ledger); });
  write_dataset(*fs, folder / "a", {some_documents(30, 100)});  // shard-1 is gone
  check_fails(ErrorKind::Config, {"shard-1.h5", "missing"}, [&] { open({{"a", 1}}, ledger); });
  write_dataset(*fs, folder / "a",
                {some_documents(30, 100), some_documents(31, 7)});  // shard-1 is another one
  check_fails(ErrorKind::Config, {"shard-1.h5", "changed"}, [&] { open({{"a", 1}}, ledger); });
  write_dataset(*fs, folder / "small", {{{1, 2, 999}}});
  check_fails(ErrorKind::Config, {"too small", "17"}, [&] { open({{"small", 1}}); });
}

BOOST_FIXTURE_TEST_CASE(audit_finds_every_planted_fault, Fixture) {
  make("a", 2, 1), make("b", 1, 2);
  const auto stream = open({{"a", 1}, {"b", 1}});
  const DataLedger good = stream.ledger_after(3 * stream.windows_per_epoch() / 2);
  audit_ledger(good);
  const auto broken = [&](auto&& change) {
    DataLedger ledger = good;
    change(ledger);
    check_fails(ErrorKind::Corrupt, {}, [&] { audit_ledger(ledger); });
  };
  broken([](DataLedger& l) { l.datasets[0].consumed += 1; });
  broken([](DataLedger& l) { l.num_consumed += 1; });
  broken([](DataLedger& l) { l.datasets[1].epochs.front().generations[0].consumed -= 1; });
  broken(
      [](DataLedger& l) { std::swap(l.mixtures[0].entries[0].second, l.mixtures[0].entries[1].second = 5); });
  broken([](DataLedger& l) {  // a window moved from one dataset to the other
    l.datasets[0].consumed -= 1, l.datasets[0].epochs.back().generations[0].consumed -= 1;
    l.datasets[1].consumed += 1, l.datasets[1].epochs.back().generations[0].consumed += 1;
  });
  check_fails(ErrorKind::Corrupt, {}, [&] { audit_succession(good, stream.ledger_after(4)); });
  DataLedger other = good;
  other.datasets[0].epochs.back().generations[0].consumed -= 1;
  check_fails(ErrorKind::Corrupt, {"continue"}, [&] { audit_succession(good, other); });
  nlohmann::json json = ledger_to_json(good);
  json["datasets"][0]["epochs"][0]["surprise"] = 1;
  check_fails(ErrorKind::Corrupt, {"surprise"}, [&] { ledger_from_json(json); });
  json = ledger_to_json(good);
  json["datasets"][0]["consumed"] = json["datasets"][0]["consumed"].get<int64_t>() + 1;
  check_fails(ErrorKind::Corrupt, {"add up"}, [&] { ledger_from_json(json); });
}

BOOST_FIXTURE_TEST_CASE(validation_scores_every_token_once, Fixture) {
  write_dataset(*fs, folder / "v", {some_documents(9, 1), {{1, 2, 999}}, some_documents(1, 4)});
  std::vector<std::unique_ptr<Dataset>> datasets;
  datasets.push_back(Dataset::open(*fs, folder / "v"));
  const int64_t num_tokens = datasets[0]->num_tokens(), num_shards = 3;
  const ValidationStream stream(std::move(datasets), 16, BorderTargets::Count);
  int64_t targets = 0;
  for (int64_t i = 0; i < stream.size(); ++i) {
    const Sample sample = stream.get(i);
    BOOST_REQUIRE(sample.tokens.size() == 17u);
    BOOST_REQUIRE(sample.loss_mask.size() == 16u);
    targets += std::accumulate(sample.loss_mask.begin(), sample.loss_mask.end(), int64_t{0});
  }
  BOOST_TEST(targets == num_tokens - num_shards);  // the first token of a shard is nobody's target
}

BOOST_FIXTURE_TEST_CASE(prefetcher_keeps_the_order_and_passes_errors_on, Fixture) {
  make("a", 2, 1);
  const auto stream = open({{"a", 1}});
  const auto source = [&](int64_t i) { return stream.get(i); };
  for (const int threads : {1, 3}) {
    const auto plan = [](int64_t n) {
      return n < 20 ? std::vector<int64_t>{2 * n, 2 * n + 1} : std::vector<int64_t>{};
    };
    Prefetcher prefetcher(source, plan, {.first_micro_batch = 4, .depth = 3, .num_threads = threads});
    for (int64_t n = 4; n < 20; ++n) {
      const auto batch = prefetcher.next();
      BOOST_REQUIRE(batch.size() == 2u);
      BOOST_REQUIRE(batch[1] == stream.get(2 * n + 1));
    }
    BOOST_TEST(prefetcher.next().empty());
    BOOST_TEST(prefetcher.next().empty());
    Prefetcher failing(
        [&](int64_t i) { return i == 6 ? fail(ErrorKind::BadInput, "block 6"), Sample{} : stream.get(i); },
        plan, {.first_micro_batch = 0, .depth = 2, .num_threads = threads});
    for (int n = 0; n < 3; ++n) BOOST_TEST(failing.next().size() == 2u);
    check_fails(ErrorKind::BadInput, {"block 6"}, [&] { failing.next(); });
    check_fails(ErrorKind::BadInput, {"block 6"}, [&] { failing.next(); });
  }
  Prefetcher unused(source, [](int64_t n) { return std::vector<int64_t>{n}; },
                    {.depth = 2});  // destroyed while reading
}
