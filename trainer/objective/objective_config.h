// The `objective` section of the experiment file: what the loss is.
#pragma once

#include <string>

#include "base/config_visit.h"

namespace hearth {

struct ObjectiveConfig {
  std::string kind = "pretrain";
  bool operator==(const ObjectiveConfig&) const = default;
  template <class V>
  void visit(V&& v) {
    v("kind", kind, OnResume::Frozen, "pretrain: mean cross-entropy of the next token over all valid tokens");
  }
  void validate(ConfigErrors& e) const { e.one_of(kind, "kind", {"pretrain"}); }
};

}  // namespace hearth
