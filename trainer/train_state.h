// What a run is beside its tensors: counters and the consumption ledger. Goes into state.json of every
// checkpoint. Value type: copy = snapshot.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>

#include "data/ledger.h"

namespace hearth {

struct TrainState {
  int64_t step = 0;  // steps done
  int64_t consumed_samples = 0;
  int64_t consumed_tokens = 0;     // positions fed, padding and masked targets included
  int64_t skipped_iterations = 0;  // updates left out because a gradient was not finite
  int64_t optimizer_updates = 0;   // AdamW updates applied; its bias correction depends on it
  // Loss on objective.incremental.old_validation, nats per token: before the first step, and last evaluated.
  std::optional<double> old_loss_before, old_loss;
  DataLedger ledger;
  bool operator==(const TrainState&) const = default;
};

nlohmann::json train_state_to_json(const TrainState& state);
// Error{Corrupt} naming `origin` for a missing or wrong field.
TrainState train_state_from_json(const nlohmann::json& json, const std::string& origin);

}  // namespace hearth
