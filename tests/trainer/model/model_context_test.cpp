// Weight gradients that wait: order, rows collected one ahead, one at a time.
#include "trainer/model/model_context.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>

#include <boost/test/unit_test.hpp>
#include <string>

using namespace hearth;

namespace {

// A queue of three gradients, of which the second and third need rows; what happens is one letter each:
// collect b, c; compute A, B, C.
struct Recorded {
  std::string happened;
  WeightGradQueue queue;
  Recorded() {
    queue.push([this] { happened += at::GradMode::is_enabled() ? "?" : "A"; });
    for (const char name : {'b', 'c'})
      queue.push(
          [this, name] {
            happened += name;
            return PendingRows(at::full({1}, static_cast<double>(name)));
          },
          [this, name](const at::Tensor& rows) {
            const bool own = rows.item<float>() == static_cast<float>(name);
            happened += own ? static_cast<char>(name - 'a' + 'A') : '?';
          });
  }
};

}  // namespace

BOOST_AUTO_TEST_CASE(rows_are_collected_while_the_gradient_before_is_computed) {
  Recorded r;
  r.queue.run();
  BOOST_TEST(r.happened == "bAcBC");
  r.queue.run();  // empty
  BOOST_TEST(r.happened == "bAcBC");
}

BOOST_AUTO_TEST_CASE(one_at_a_time_the_first_goes_first) {
  Recorded r;
  r.queue.run_one();
  BOOST_TEST(r.happened == "A");
  r.queue.run_one();
  BOOST_TEST(r.happened == "AbB");
  r.queue.run();
  BOOST_TEST(r.happened == "AbBcC");
  r.queue.run_one();
  BOOST_TEST(r.happened == "AbBcC");
}
