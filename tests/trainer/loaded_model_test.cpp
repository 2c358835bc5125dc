// How ranks share a model that answers. (What they then answer: tests/integration/verbs_parallel.py.)
#include "trainer/loaded_model.h"

#include <boost/test/unit_test.hpp>

using namespace hearth;

namespace {

ModelConfig model(int64_t layers, int64_t heads, int64_t kv_heads) {
  ModelConfig m;
  m.vocab_size = 100;
  m.hidden_size = 16 * heads;
  m.intermediate_size = 48 * heads;
  m.num_hidden_layers = layers;
  m.num_attention_heads = heads;
  m.num_key_value_heads = kv_heads;
  return m;
}

struct Sizes {
  int64_t tensor, pipeline;
  bool operator==(const Sizes&) const = default;
};
Sizes sizes(const ModelConfig& m, int ranks) {
  const ParallelConfig layout = layout_of_all(m, ranks);
  return {layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size};
}

}  // namespace

BOOST_AUTO_TEST_CASE(all_ranks_make_one_copy_where_they_can) {
  BOOST_CHECK((sizes(model(4, 8, 2), 1) == Sizes{1, 1}));
  BOOST_CHECK((sizes(model(4, 8, 2), 8) == Sizes{8, 1}));   // two key/value heads, each on four ranks
  BOOST_CHECK((sizes(model(4, 8, 2), 16) == Sizes{8, 2}));  // no more tensor-parallel ranks than heads
  BOOST_CHECK((sizes(model(30, 9, 3), 8) == Sizes{1, 8}));  // nine heads: only threes divide
  BOOST_CHECK((sizes(model(30, 9, 3), 6) == Sizes{3, 2}));
  BOOST_CHECK((sizes(model(2, 4, 4), 3) == Sizes{1, 1}));   // neither heads nor layers: three copies
  BOOST_CHECK((sizes(model(2, 4, 4), 16) == Sizes{4, 2}));  // and two copies here
}

BOOST_AUTO_TEST_CASE(what_only_a_training_needs_becomes_plain) {
  ParallelConfig trained;
  trained.tensor_model_parallel_size = 2;
  trained.pipeline_model_parallel_size = 2;
  trained.context_parallel_size = 2;
  trained.zero_stage = 3;
  trained.num_distributed_optimizer_instances = 2;
  trained.collective_timeout_s = 7;
  trained.pipeline_schedule = "zbv";
  trained.pipeline_model_parallel_layout = {1, 2, 3, 4};  // of two chunks a rank
  ParallelConfig want;
  want.tensor_model_parallel_size = 2;
  want.pipeline_model_parallel_size = 2;
  want.collective_timeout_s = 7;
  want.zero_stage = 0;
  want.sequence_parallel = false;
  BOOST_TEST(static_cast<bool>(answering_layout(trained) == want));
  for (const char* one_chunk : {"1f1b", "zb_h1"}) {
    trained.pipeline_schedule = one_chunk;
    trained.pipeline_model_parallel_layout = want.pipeline_model_parallel_layout = {3, 1};
    BOOST_TEST(static_cast<bool>(answering_layout(trained) == want));
  }
}
