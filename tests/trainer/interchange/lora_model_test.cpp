// A base model and its adapters read as one: any slice is that of the whole, and costs one read of the
// adapters.
#include "trainer/interchange/lora_model.h"

#include <boost/test/unit_test.hpp>
#include <cmath>

#include "tests/trainer/random_tensors.h"

using namespace hearth;
using hearth::testing::RandomTensors;

namespace {

constexpr int64_t kRows = 7, kColumns = 11, kRank = 3;
const std::string kName = "model.layers.0.mlp.down_proj.weight", kPlain = "model.norm.weight";

struct Merged {
  std::shared_ptr<RandomTensors> base = std::make_shared<RandomTensors>(
      std::vector<TensorInfo>{{kName, DType::F32, {kRows, kColumns}}, {kPlain, DType::F32, {kColumns}}});
  std::shared_ptr<RandomTensors> adapters = std::make_shared<RandomTensors>(std::vector<TensorInfo>{
      {lora_a_name(kName), DType::F32, {kRank, kColumns}}, {lora_b_name(kName), DType::F32, {kRows, kRank}}});
  LoraShape lora{.rank = kRank, .alpha = 5};
  std::unique_ptr<TensorSource> source = merged_source(base, adapters, lora);
};

std::vector<float> read(const TensorSource& source, const std::string& name, int64_t begin, int64_t end) {
  std::vector<float> out(static_cast<size_t>(end - begin));
  source.read_elements(name, begin, end, DType::F32, out.data());
  return out;
}

}  // namespace

BOOST_AUTO_TEST_CASE(the_whole_is_the_base_and_the_scaled_product) {
  const Merged merged;
  const auto w = read(*merged.base, kName, 0, kRows * kColumns),
             a = read(*merged.adapters, lora_a_name(kName), 0, kRank * kColumns),
             b = read(*merged.adapters, lora_b_name(kName), 0, kRows * kRank),
             got = read(*merged.source, kName, 0, kRows * kColumns);
  for (int64_t i = 0; i < kRows * kColumns; ++i) {
    double want = static_cast<double>(w[static_cast<size_t>(i)]);
    for (int64_t r = 0; r < kRank; ++r)
      want += merged.lora.scale() * static_cast<double>(b[static_cast<size_t>(i / kColumns * kRank + r)]) *
              static_cast<double>(a[static_cast<size_t>(r * kColumns + i % kColumns)]);
    // Values near 0.1 with kRank + 1 roundings to fp32.
    BOOST_TEST(std::abs(static_cast<double>(got[static_cast<size_t>(i)]) - want) <= 1e-7);
  }
  BOOST_TEST(read(*merged.source, kPlain, 0, kColumns) == read(*merged.base, kPlain, 0, kColumns),
             boost::test_tools::per_element());
}

BOOST_AUTO_TEST_CASE(slices_are_those_of_the_whole) {
  const Merged merged;
  const auto whole = read(*merged.source, kName, 0, kRows * kColumns);
  for (int64_t begin = 0; begin < kRows * kColumns; ++begin)
    for (int64_t end = begin; end <= kRows * kColumns; ++end)
      BOOST_TEST((read(*merged.source, kName, begin, end) ==
                  std::vector<float>(whole.begin() + begin, whole.begin() + end)));
}

BOOST_AUTO_TEST_CASE(a_box_reads_the_adapters_once) {
  const Merged merged;
  const int64_t before = merged.adapters->reads();
  std::vector<float> box(kRows * 4);
  merged.source->read_box(kName, {{0, 5}, {kRows, 4}}, DType::F32, box.data());
  BOOST_TEST(merged.adapters->reads() - before == 2);  // A and B
}
