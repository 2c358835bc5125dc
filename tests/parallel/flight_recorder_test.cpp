#include "parallel/flight_recorder.h"

#include <fmt/core.h>

#include <boost/test/unit_test.hpp>
#include <thread>

#include "base/error.h"
#include "parallel/binding.h"

using namespace hearth;

namespace {
uint64_t begin(FlightRecorder& recorder, std::string_view site, uint64_t seq) {
  return recorder.begin({.op = "all_reduce",
                         .site = site,
                         .group = "dp",
                         .seq = seq,
                         .size_bytes = 4096,
                         .dtype = DType::BF16});
}
bool contains(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}
}  // namespace

BOOST_AUTO_TEST_CASE(pending_and_last_finished_are_described) {
  FlightRecorder recorder;
  BOOST_TEST(recorder.describe_pending() == "nothing");
  const auto a = begin(recorder, "grad.bucket0", 1);
  begin(recorder, "grad.bucket1", 2);
  recorder.end(a);
  const std::string text = recorder.describe_pending();
  BOOST_TEST(contains(text, "all_reduce grad.bucket1 (group dp, call 2, 4096 bytes bf16, "));
  BOOST_TEST(contains(text, "last finished: all_reduce grad.bucket0 (group dp, call 1"));
  BOOST_TEST(text.find("grad.bucket1") < text.find("grad.bucket0"));
}

BOOST_AUTO_TEST_CASE(the_ring_keeps_the_newest) {
  FlightRecorder recorder(4);
  std::vector<uint64_t> ids;
  for (uint64_t i = 1; i <= 10; ++i) ids.push_back(begin(recorder, "s" + std::to_string(i), i));
  recorder.end(ids[0]);  // forgotten: must not touch the entry that took its place
  const auto entries = recorder.entries();
  BOOST_TEST_REQUIRE(entries.size() == 4u);
  for (size_t i = 0; i < 4; ++i) {
    BOOST_TEST(entries[i].site == "s" + std::to_string(7 + i));
    BOOST_CHECK(entries[i].state == FlightRecorder::State::Pending);
  }
  recorder.fail(ids[9]);
  BOOST_CHECK(recorder.entries()[3].state == FlightRecorder::State::Failed);
  BOOST_CHECK_THROW(FlightRecorder(0), Error);
}

BOOST_AUTO_TEST_CASE(dump_has_a_line_per_call) {
  FlightRecorder recorder;
  recorder.end(begin(recorder, "one", 1));
  begin(recorder, "two", 2);
  const std::string text = recorder.dump();
  BOOST_TEST(std::count(text.begin(), text.end(), '\n') == 3);  // heading and two calls
  BOOST_TEST(contains(text, "1 dp 1 all_reduce one 4096 bf16 done "));
  BOOST_TEST(contains(text, "2 dp 2 all_reduce two 4096 bf16 pending "));
}

BOOST_AUTO_TEST_CASE(an_observer_is_told_of_every_call) {
  struct Notes final : FlightRecorder::Observer {
    void begin(uint64_t id, const FlightRecorder::Call& call) override {
      text += fmt::format("begin {} {};", id, call.site);
    }
    void issued(uint64_t id) override { text += fmt::format("issued {};", id); }
    void end(uint64_t id) override { text += fmt::format("end {};", id); }
    std::string text;
  } notes;
  FlightRecorder recorder(1);
  recorder.end(begin(recorder, "unseen", 1));
  recorder.observe(&notes);
  const auto two = begin(recorder, "two", 2), three = begin(recorder, "three", 3);
  recorder.issued(two);
  recorder.end(two);  // forgotten by the ring, not by the observer
  recorder.fail(three);
  recorder.observe(nullptr);
  recorder.end(begin(recorder, "unseen", 4));
  BOOST_TEST(notes.text == "begin 2 two;begin 3 three;issued 2;end 2;end 3;");
}

BOOST_AUTO_TEST_CASE(threads_may_share_it) {
  FlightRecorder recorder(64);
  std::thread reader([&] {
    for (int i = 0; i < 200; ++i) BOOST_CHECK(!recorder.dump().empty());
  });
  for (uint64_t i = 0; i < 20000; ++i) recorder.end(begin(recorder, "site", i));
  reader.join();
  BOOST_TEST(recorder.entries().back().id == 20000u);
}

BOOST_AUTO_TEST_CASE(cores_are_written_as_ranges) {
  BOOST_TEST(format_cores({}) == "");
  BOOST_TEST(format_cores({5}) == "5");
  BOOST_TEST(format_cores({0, 1, 2, 3, 8, 10, 11}) == "0-3,8,10-11");
  BOOST_TEST(!allowed_cores().empty());
  BOOST_CHECK(device_of(5, 4) == 1);
  BOOST_CHECK(device_of(5, 0) == std::nullopt);
}
