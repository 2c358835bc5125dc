// The `recompute` section of the experiment file: which activations backward rebuilds instead of keeping.
#pragma once

#include <string>
#include <vector>

#include "base/config_visit.h"

namespace hearth {

struct RecomputeConfig {
  std::string granularity = "selective";
  std::vector<std::string> modules = {"norm", "swiglu"};
  int64_t num_layers = 1;
  bool operator==(const RecomputeConfig&) const = default;
  template <class V>
  void visit(V&& v) {
    v("granularity", granularity, OnResume::MayChange, "none, selective or full (whole layers)");
    v("modules", modules, OnResume::MayChange, "selective: what is rebuilt, of norm, swiglu, core_attn");
    v("num_layers", num_layers, OnResume::MayChange, "full: the input of every so many layers is kept");
  }
  void validate(ConfigErrors& e) const {
    e.one_of(granularity, "granularity", {"none", "selective", "full"});
    for (size_t i = 0; i < modules.size(); ++i)
      e.one_of(modules[i], fmt::format("modules[{}]", i), {"norm", "swiglu", "core_attn"});
    e.require(num_layers >= 1, "num_layers", "must be >= 1, got {}", num_layers);
  }
};

}  // namespace hearth
