// Every rank's part of a model: together they are the whole, each element counted once.
#include "trainer/model/model_partition.h"

#include <boost/test/unit_test.hpp>
#include <map>
#include <set>

#include "base/error.h"

using namespace hearth;

namespace {

ModelConfig config(bool tied) {
  ModelConfig c;
  c.vocab_size = 509;
  c.hidden_size = 64;
  c.intermediate_size = 96;
  c.num_hidden_layers = 5;
  c.num_attention_heads = 8;
  c.num_key_value_heads = 2;
  c.max_position_embeddings = 64;
  c.tie_word_embeddings = tied;
  c.attention_bias = c.attention_output_bias = c.qk_norm = true;
  return c;
}

bool is_config_error(const Error& e) {
  return e.kind() == ErrorKind::Config;
}

const ParameterShard& find(const std::vector<ParameterShard>& shards, const std::string& name) {
  for (const auto& shard : shards)
    if (shard.spec.name == name) return shard;
  BOOST_FAIL("no " << name);
  return shards.front();
}

ModelPartition partition(const ModelConfig& c, int64_t size, int64_t rank) {
  ModelPartition p = ModelPartition::whole(c);
  p.tensor_size = size;
  p.tensor_rank = rank;
  return p;
}

}  // namespace

BOOST_AUTO_TEST_CASE(chunks_follow_the_split) {
  const auto chunks = model_chunks({2, 1, 3});
  BOOST_REQUIRE(chunks.size() == 3U);
  BOOST_CHECK((chunks[0] == ModelChunk{0, 2, true, false}));
  BOOST_CHECK((chunks[1] == ModelChunk{2, 1, false, false}));
  BOOST_CHECK((chunks[2] == ModelChunk{3, 3, false, true}));
  BOOST_CHECK((model_chunks({4})[0] == ModelChunk{0, 4, true, true}));
}

// Over the tensor-parallel ranks, the shards that count cover every element exactly once, padding not among
// them.
BOOST_AUTO_TEST_CASE(tensor_shards_cover_every_element_once) {
  for (const bool tied : {true, false})
    for (const int64_t size : {1, 2, 4, 8}) {
      const ModelConfig c = config(tied);
      std::map<std::string, std::vector<int>> seen;
      for (const ParameterSpec& spec : parameter_specs(c))
        seen[spec.name].assign(static_cast<size_t>(spec.numel()), 0);
      for (int64_t rank = 0; rank < size; ++rank)
        for (const ParameterShard& shard : parameter_shards(c, partition(c, size, rank))) {
          if (!shard.counts) continue;
          auto& elements = seen.at(shard.spec.name);
          for_each_run(shard.spec.shape, shard.box, 0, shard.numel(),
                       [&](int64_t at, int64_t, int64_t count) {
                         for (int64_t i = at; i < at + count; ++i) ++elements[static_cast<size_t>(i)];
                       });
        }
      for (const auto& [name, elements] : seen)
        BOOST_REQUIRE_MESSAGE((std::set<int>(elements.begin(), elements.end()) == std::set<int>{1}),
                              name << " with " << size << " ranks");
    }
}

// Over pipeline ranks each layer is on one; a tied table is on both ends and counts on the first.
BOOST_AUTO_TEST_CASE(pipeline_parts_cover_every_parameter) {
  for (const bool tied : {true, false}) {
    const ModelConfig c = config(tied);
    const auto chunks = model_chunks({1, 2, 1, 1});
    std::map<std::string, int> holders, counters;
    for (const auto& mine : {std::vector{chunks[0]}, {chunks[1]}, {chunks[2]}, {chunks[3]}}) {
      ModelPartition p;
      p.chunks = mine;
      p.tied_ends_apart = tied;
      for (const ParameterShard& shard : parameter_shards(c, p)) {
        ++holders[shard.spec.name];
        counters[shard.spec.name] += shard.counts ? 1 : 0;
        if (shard.spec.name == "model.embed_tokens.weight")
          BOOST_CHECK(shard.sum == (tied ? GradientSum::TiedEmbedding : GradientSum::None));
      }
    }
    for (const ParameterSpec& spec : parameter_specs(c)) {
      BOOST_TEST(holders[spec.name] == (tied && spec.name == "model.embed_tokens.weight" ? 2 : 1));
      BOOST_TEST(counters[spec.name] == 1);
    }
    BOOST_TEST(holders.size() == parameter_specs(c).size());
  }
}

BOOST_AUTO_TEST_CASE(who_adds_which_gradients) {
  const ModelConfig c = config(false);
  auto p = partition(c, 4, 1);  // two ranks share each key/value head
  const std::string layer = "model.layers.3.";
  const auto sum = [&](const std::string& name) { return find(parameter_shards(c, p), name).sum; };
  BOOST_CHECK(sum(layer + "self_attn.k_proj.weight") == GradientSum::KvReplicas);
  BOOST_CHECK(sum(layer + "self_attn.v_proj.bias") == GradientSum::KvReplicas);
  BOOST_CHECK(sum(layer + "self_attn.q_proj.weight") == GradientSum::None);
  BOOST_CHECK(sum(layer + "mlp.down_proj.weight") == GradientSum::None);
  BOOST_CHECK(sum(layer + "input_layernorm.weight") == GradientSum::TensorParallel);
  BOOST_CHECK(sum("model.norm.weight") == GradientSum::TensorParallel);
  BOOST_CHECK(sum(layer + "self_attn.q_norm.weight") == GradientSum::TensorParallel);
  // Without sequence parallelism every rank sees all rows, but still its own heads only.
  p.sequence_parallel = false;
  BOOST_CHECK(sum(layer + "input_layernorm.weight") == GradientSum::None);
  BOOST_CHECK(sum(layer + "self_attn.q_norm.weight") == GradientSum::TensorParallel);
  p = partition(c, 2, 1);
  BOOST_CHECK(sum(layer + "self_attn.k_proj.weight") == GradientSum::None);
}

BOOST_AUTO_TEST_CASE(boxes_by_hand) {
  const ModelConfig c = config(false);
  const auto shards = parameter_shards(c, partition(c, 4, 3));
  const auto box = [&](const std::string& name) { return find(shards, "model.layers.0." + name).box; };
  BOOST_CHECK((box("self_attn.q_proj.weight") == Box{{48, 0}, {16, 64}}));
  BOOST_CHECK((box("self_attn.k_proj.weight") == Box{{8, 0}, {8, 64}}));  // head 1, shared by ranks 2 and 3
  BOOST_CHECK((box("self_attn.o_proj.weight") == Box{{0, 48}, {64, 16}}));
  BOOST_CHECK((box("mlp.up_proj.weight") == Box{{72, 0}, {24, 64}}));
  BOOST_CHECK((box("mlp.down_proj.weight") == Box{{0, 72}, {64, 24}}));
  BOOST_CHECK((box("input_layernorm.weight") == Box{{0}, {64}}));
}

// Units order what is fetched together: table, layers, head.
BOOST_AUTO_TEST_CASE(units_by_use) {
  const auto shards = parameter_shards(config(false), ModelPartition::whole(config(false)));
  BOOST_TEST(find(shards, "model.embed_tokens.weight").unit == 0);
  BOOST_TEST(find(shards, "model.layers.0.mlp.up_proj.weight").unit == 1);
  BOOST_TEST(find(shards, "model.layers.4.mlp.up_proj.weight").unit == 5);
  BOOST_TEST(find(shards, "lm_head.weight").unit == 6);
}

BOOST_AUTO_TEST_CASE(vocabulary_shares_cover_the_ids) {
  for (const int64_t vocab : {1, 127, 128, 129, 509, 1000, 151936})
    for (const int64_t size : {1, 2, 3, 8}) {
      int64_t next = 0;
      for (int64_t rank = 0; rank < size; ++rank) {
        const VocabShare share = vocab_share(vocab, size, rank);
        BOOST_TEST(share.first == next);
        BOOST_TEST((share.count >= 0 && share.count <= share.storage));
        BOOST_TEST(share.storage % kVocabPadding == 0);
        BOOST_TEST(share.storage == vocab_share(vocab, size, 0).storage);  // equal GEMMs on all ranks
        next += share.count;
      }
      BOOST_TEST(next == vocab);
    }
}

BOOST_AUTO_TEST_CASE(heads_that_do_not_divide_are_refused) {
  const ModelConfig c = config(false);
  for (const int64_t size : {1, 2, 4, 8}) BOOST_CHECK_NO_THROW(require_tensor_parallel(c, size));
  for (const int64_t size : {3, 5, 16})
    BOOST_CHECK_EXCEPTION(require_tensor_parallel(c, size), Error, is_config_error);
  ModelConfig three = c;  // 8 query heads over 4 ranks, but neither 3 divides 4 nor 4 divides 3
  three.num_attention_heads = 12;
  three.num_key_value_heads = 3;
  BOOST_CHECK_EXCEPTION(require_tensor_parallel(three, 4), Error, is_config_error);
  const LocalHeads heads = local_heads(c, 8, 5);
  BOOST_TEST(heads.query == 1);
  BOOST_TEST(heads.kv == 1);
  BOOST_TEST(heads.first_kv == 1);
  BOOST_TEST(heads.replicas == 4);
}
