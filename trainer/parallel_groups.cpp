#include "trainer/parallel_groups.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <optional>
#include <set>

#include "base/error.h"
#include "parallel/zero/hierarchy.h"
#include "trainer/parallel_layout.h"

namespace hearth {
namespace {

// Gradients and weights travel beside products, which lose a multiprocessor to every thread block of NCCL's
// for as long as it waits for its peer; measured on two H200: 16 are faster than NCCL's own choice, and
// than 8.
constexpr int kMaxCtasBesideCompute = 16;

// Makes communicators for one job: every rank calls make() with the group that it is in.
class Maker {
 public:
  Maker(Job& job, const Mesh& mesh, at::Device device, double timeout_s)
      : job_(job), mesh_(mesh), timeout_s_(timeout_s) {
    if (device.is_cuda()) cuda_device_ = device.index();
  }

  std::unique_ptr<Comm> make(const char* name, std::vector<int> ranks, int max_ctas = 0) const {
    return make_comm(job_, {.group = name,
                            .ranks = std::move(ranks),
                            .cuda_device = cuda_device_,
                            .timeout_s = timeout_s_,
                            .max_ctas = max_ctas});
  }
  // Null where no rank of the job has company in such a group; all ranks agree on that.
  std::unique_ptr<Comm> make_unless_alone(const char* name, std::vector<int> ranks, bool exists) const {
    if (!exists) return nullptr;
    auto comm = make(name, std::move(ranks));
    return comm->size() > 1 ? std::move(comm) : nullptr;
  }
  int rank() const { return job_.control->rank(); }
  // This rank's counterpart at another pipeline rank.
  int at_pipeline_rank(int stage) const {
    auto coordinates = mesh_.coordinates(rank());
    coordinates[static_cast<size_t>(MeshAxis::Pp)] = stage;
    return mesh_.rank(coordinates);
  }

 private:
  Job& job_;
  const Mesh& mesh_;
  double timeout_s_;
  std::optional<int> cuda_device_;
};

std::vector<int> kv_replica_group(const std::vector<int>& tensor_group, int coordinate, int64_t replicas) {
  const auto size = static_cast<int>(replicas);
  const auto begin = tensor_group.begin() + coordinate / size * size;
  return {begin, begin + size};
}

// NCCL connects to a peer inside the first send or recv and blocks there until the peer comes: done here in
// an order that all ranks share, since a schedule may post its first recv long before the peer's send.
void connect(const PipelineLinks& links, const std::vector<std::vector<std::pair<int, int>>>& rounds,
             int stage, at::Device device) {
  const at::Tensor word = at::zeros({1}, at::TensorOptions(device).dtype(at::kFloat));
  for (const auto& round : rounds)
    for (const auto& [from, to] : round) {
      if (from == stage)
        links.link(from, to).send(word.data_ptr(), 1, DType::F32, /*peer=*/1, "pp.connect")->wait();
      if (to == stage)
        links.link(from, to).recv(word.data_ptr(), 1, DType::F32, /*peer=*/0, "pp.connect")->wait();
    }
}

}  // namespace

std::vector<std::vector<std::pair<int, int>>> link_rounds(const PipelineSchedule& schedule) {
  std::set<std::pair<int, int>> pairs;
  for (int v = 0; v + 1 < schedule.virtual_stages(); ++v) {
    const int a = schedule.place(v).rank, b = schedule.place(v + 1).rank;
    if (a != b) pairs.insert({{a, b}, {b, a}});
  }
  std::vector<std::vector<std::pair<int, int>>> rounds;
  while (!pairs.empty()) {
    std::set<int> busy;
    rounds.emplace_back();
    for (auto pair = pairs.begin(); pair != pairs.end();) {
      if (busy.count(pair->first) != 0 || busy.count(pair->second) != 0) {
        ++pair;
        continue;
      }
      busy.insert({pair->first, pair->second});
      rounds.back().push_back(*pair);
      pair = pairs.erase(pair);
    }
  }
  return rounds;
}

ParallelGroups make_parallel_groups(Job& job, const ExperimentConfig& config, const Mesh& mesh,
                                    at::Device device) {
  const Maker maker(job, mesh, device, config.parallel.collective_timeout_s);
  const PipelineSchedule schedule = pipeline_schedule(config, mesh);
  const int64_t kv_replicas = local_heads(config.model, mesh.size(MeshAxis::Tp), 0).replicas;
  const auto instances = checked_cast<int>(config.parallel.num_distributed_optimizer_instances);
  ParallelGroups groups;
  groups.mesh = mesh;
  groups.rank = maker.rank();
  const auto data_ranks = mesh.group(groups.rank, {MeshAxis::Dp, MeshAxis::Cp});
  groups.data = maker.make("dp", data_ranks, kMaxCtasBesideCompute);
  if (instances > 1) {
    const auto hierarchy = sharding_hierarchy(data_ranks, instances, groups.rank);
    groups.shard = maker.make("dp.shard", hierarchy.shard_group, kMaxCtasBesideCompute);
    groups.replicas = maker.make("dp.replica", hierarchy.replica_group);
  }
  if (static_cast<int>(data_ranks.size()) != mesh.world_size()) {
    std::vector<int> everyone(static_cast<size_t>(mesh.world_size()));
    for (size_t i = 0; i < everyone.size(); ++i) everyone[i] = static_cast<int>(i);
    groups.world = maker.make("world", everyone);
  }
  const auto tensor_ranks = mesh.group(groups.rank, MeshAxis::Tp);
  const int tensor_coordinate = groups.coordinate(MeshAxis::Tp), stage = groups.coordinate(MeshAxis::Pp);
  groups.tensor = maker.make_unless_alone("tp", tensor_ranks, mesh.size(MeshAxis::Tp) > 1);
  groups.pipeline =
      maker.make_unless_alone("pp.all", mesh.group(groups.rank, MeshAxis::Pp), mesh.size(MeshAxis::Pp) > 1);
  groups.context =
      maker.make_unless_alone("cp", mesh.group(groups.rank, MeshAxis::Cp), mesh.size(MeshAxis::Cp) > 1);
  groups.kv_replicas = maker.make_unless_alone(
      "kv", kv_replica_group(tensor_ranks, tensor_coordinate, kv_replicas), kv_replicas > 1);
  const int first = schedule.place(0).rank, last = schedule.place(schedule.virtual_stages() - 1).rank;
  std::vector<int> ends{groups.rank};
  if (stage == first || stage == last) ends = {maker.at_pipeline_rank(first), maker.at_pipeline_rank(last)};
  groups.tied_embedding =
      maker.make_unless_alone("embd", ends, config.model.tie_word_embeddings && first != last);
  for (const auto& round : link_rounds(schedule)) {
    const auto mine = std::find_if(round.begin(), round.end(), [&](const auto& pair) {
      return pair.first == stage || pair.second == stage;
    });
    if (mine == round.end()) {
      maker.make("pp", {groups.rank});
    } else {
      groups.links.add(
          mine->first, mine->second,
          maker.make("pp", {maker.at_pipeline_rank(mine->first), maker.at_pipeline_rank(mine->second)}));
    }
  }
  if (device.is_cuda()) connect(groups.links, link_rounds(schedule), stage, device);
  return groups;
}

void ParallelGroups::set_compute_stream(StreamHandle stream) {
  for (Comm* comm : {world.get(), data.get(), pipeline.get(), shard.get(), replicas.get(), tensor.get(),
                     context.get(), kv_replicas.get(), tied_embedding.get()})
    if (comm != nullptr) comm->set_compute_stream(stream);
  for (const auto& [pair, comm] : links.all()) comm->set_compute_stream(stream);
}

ModelContext model_context(const ParallelConfig& config, Comm* tensor, Comm* context) {
  ModelContext made;
  if (tensor != nullptr)
    made.rows =
        RowCollectives(*tensor, config.sequence_parallel ? SequenceParallel::On : SequenceParallel::Off);
  made.sequence = {context, config.cp_comm_type == "a2a" ? ContextMethod::AllToAll : ContextMethod::Ring};
  return made;
}

}  // namespace hearth
