#include "trainer/train_state.h"

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace hearth {
namespace {

struct Field {
  const char* name;
  int64_t TrainState::*member;
};
constexpr Field kFields[] = {{"step", &TrainState::step},
                             {"consumed_samples", &TrainState::consumed_samples},
                             {"consumed_tokens", &TrainState::consumed_tokens},
                             {"skipped_iterations", &TrainState::skipped_iterations},
                             {"optimizer_updates", &TrainState::optimizer_updates}};

}  // namespace

nlohmann::json train_state_to_json(const TrainState& state) {
  nlohmann::json json;
  for (const Field& field : kFields) json[field.name] = state.*field.member;
  if (state.old_loss_before) json["old_loss_before"] = *state.old_loss_before;
  if (state.old_loss) json["old_loss"] = *state.old_loss;
  json["ledger"] = ledger_to_json(state.ledger);
  return json;
}

TrainState train_state_from_json(const nlohmann::json& json, const std::string& origin) {
  TrainState state;
  for (const Field& field : kFields) {
    HEARTH_CHECK(json.contains(field.name) && json[field.name].is_number_integer(), Corrupt,
                 "{}: field '{}' is missing or not an integer", origin, field.name);
    state.*field.member = json[field.name].get<int64_t>();
    HEARTH_CHECK(state.*field.member >= 0, Corrupt, "{}: field '{}' is negative", origin, field.name);
  }
  const auto number = [&](const char* name) -> std::optional<double> {
    if (!json.contains(name)) return std::nullopt;
    HEARTH_CHECK(json[name].is_number(), Corrupt, "{}: field '{}' is not a number", origin, name);
    return json[name].get<double>();
  };
  state.old_loss_before = number("old_loss_before");
  state.old_loss = number("old_loss");
  HEARTH_CHECK(json.contains("ledger"), Corrupt,
               "{}: no data ledger; this checkpoint holds weights only, start from it "
               "with model.init_from",
               origin);
  state.ledger = ledger_from_json(json["ledger"]);
  return state;
}

}  // namespace hearth
