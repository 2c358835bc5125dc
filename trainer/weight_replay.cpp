#include "trainer/weight_replay.h"

#include "trainer/model/nf4_slices.h"

namespace hearth {
namespace {

// The unit that backward uses after that of `layer`. The table's gradient needs no table.
int64_t before(int64_t layer) {
  return layer > 0 ? layer : -1;
}

}  // namespace

WeightReplay::WeightReplay(const ModelConfig& config, const ModelPartition& partition,
                           int64_t recompute_every_layers, PeakBytes& total)
    : config_(config), partition_(partition), every_layers_(recompute_every_layers), total_(total) {}

void WeightReplay::add_store(const std::vector<ParameterShard>& shards, const StoreOptions& options) {
  Store store;
  store.fetches_ahead = options.weights == BucketMemory::OnDemand;
  const StoragePlan storage = storage_plan(shards, options);
  for (const Bucket& planned : storage.plan.buckets) {
    BucketState bucket{.bytes = planned.arena.count() * size_bytes(options.dtype),
                       .on_demand = is_on_demand(planned, options)};
    if (!bucket.on_demand) total_.add(bucket.bytes);
    if (bucket.on_demand && store.fetches_ahead) total_.add(bucket.bytes / options.data_parallel_size);
    store.buckets.push_back(bucket);
  }
  if (options.weights == BucketMemory::LayersOnDemand) total_.add(nf4_bytes(shards));
  for (size_t i = 0; i < storage.plan.places.size(); ++i) {
    auto& of_unit = store.of_unit[shards[storage.order[i]].unit];
    if (std::find(of_unit.begin(), of_unit.end(), storage.plan.places[i].bucket) == of_unit.end())
      of_unit.push_back(storage.plan.places[i].bucket);
  }
  stores_.push_back(std::move(store));
}

void WeightReplay::gather(Store& store, int64_t unit) {
  const auto found = store.of_unit.find(unit);
  if (found == store.of_unit.end()) return;
  for (const int64_t index : found->second) {
    BucketState& bucket = store.buckets[static_cast<size_t>(index)];
    if (!bucket.on_demand || bucket.here) continue;
    bucket.here = true;
    total_.add(bucket.bytes);
  }
}

void WeightReplay::begin() {
  auto& buckets = stores_.front().buckets;
  const auto first = std::find_if(buckets.rbegin(), buckets.rend(), [](const BucketState& b) {
    return b.on_demand;  // in backward order, as a plan's
  });
  if (first == buckets.rend()) return;
  first->here = true;
  total_.add(first->bytes);
}

void WeightReplay::use(int64_t unit, int64_t next) {
  for (Store& store : stores_) {
    gather(store, unit);
    if (store.fetches_ahead && store.of_unit.contains(unit)) gather(store, next);
  }
}

void WeightReplay::done(int64_t unit) {
  for (Store& store : stores_) {
    const auto found = store.of_unit.find(unit);
    if (found == store.of_unit.end()) continue;
    for (const int64_t index : found->second) {
      BucketState& bucket = store.buckets[static_cast<size_t>(index)];
      if (bucket.here) total_.add(-bucket.bytes);
      bucket.here = false;
    }
  }
}

void WeightReplay::layers(int number) {
  const ModelChunk& part = chunk(number);
  if (part.embedding) {
    use(0, 1);
    done(0);
  }
  const int64_t last = part.first_layer + part.num_layers - 1;
  for (int64_t layer = part.first_layer; layer <= last; ++layer) {
    use(1 + layer, part.head && layer == last ? head_unit() : 2 + layer);
    done(1 + layer);
  }
  // The norm is of the head's unit, also where the head is tied to the table.
  if (part.head) use(2 + last, 3 + last);
}

void WeightReplay::loss(Head head) {
  if (head == Head::LogprobsAndLoss) {
    hold_head();
    drop_head();
  }
  use(head_unit(), config_.num_hidden_layers);
  done(head_unit());
}

void WeightReplay::hidden() {
  for (size_t i = 0; i < partition_.chunks.size(); ++i) layers(static_cast<int>(i));
  drop_head();
}

void WeightReplay::hold_head() {
  if (partition_.has_head()) use(head_unit(), head_unit() + 1);
}

void WeightReplay::drop_head() {
  if (partition_.has_head()) done(head_unit());
}

void WeightReplay::backward(int number) {
  const ModelChunk& part = chunk(number);
  const int64_t first = part.first_layer, count = part.num_layers,
                step = every_layers_ > 0 ? every_layers_ : count;
  for (int64_t group = (count - 1) / step; group >= 0; --group) {
    const int64_t begin = first + group * step, end = std::min(first + count, begin + step);
    if (every_layers_ > 0)
      for (int64_t layer = begin; layer < end; ++layer)
        use(1 + layer, before(layer));  // rebuilt: stays for its backward
    for (int64_t layer = end - 1; layer >= begin; --layer) {
      use(1 + layer, before(layer));
      done(1 + layer);
    }
  }
}

// Weights of the unit of a chunk in use and of the one fetched ahead, where they come and go.
int64_t WeightReplay::largest_neighbours(const ModelChunk& part) const {
  const auto bytes = [&](int64_t unit, bool ahead) {
    int64_t sum = 0;
    for (const Store& store : stores_) {
      const auto found = store.of_unit.find(unit);
      if (found == store.of_unit.end() || (ahead && !store.fetches_ahead)) continue;
      for (const int64_t index : found->second) {
        const BucketState& bucket = store.buckets[static_cast<size_t>(index)];
        sum += bucket.on_demand ? bucket.bytes : 0;
      }
    }
    return sum;
  };
  const int64_t last = part.first_layer + part.num_layers;
  int64_t most = part.head ? bytes(last, false) + bytes(head_unit(), true) : 0;
  // The table is read at once, without a turn.
  for (int64_t unit = 1 + part.first_layer; unit <= last; ++unit)
    most = std::max(most, bytes(unit, false) + (unit < last ? bytes(unit + 1, true) : 0));
  return most;
}

void WeightReplay::forward_and_backward(int forward_chunk, int backward_chunk) {
  layers(forward_chunk);
  if (has_head(forward_chunk)) loss(Head::Loss);
  const int64_t held = largest_neighbours(chunk(forward_chunk));
  total_.add(held);
  backward(backward_chunk);
  total_.add(-held);
}

}  // namespace hearth
