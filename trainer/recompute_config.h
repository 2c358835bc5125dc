// The `recompute` section of the experiment file: which activations backward rebuilds instead of keeping.
#pragma once

#include <string>
#include <vector>

#include "base/config_visit.h"

namespace hearth {

struct RecomputeConfig {
  std::string granularity = "selective";
  std::vector<std::string> modules = {"norm", "swiglu"};
  bool operator==(const RecomputeConfig&) const = default;
  template <class V>
  void visit(V&& v) {
    v("granularity", granularity, OnResume::MayChange, "none | selective");
    v("modules", modules, OnResume::MayChange, "selective: what is rebuilt, of norm, swiglu");
  }
  void validate(ConfigErrors& e) const {
    e.one_of(granularity, "granularity", {"none", "selective"});
    for (size_t i = 0; i < modules.size(); ++i)
      e.one_of(modules[i], fmt::format("modules[{}]", i), {"norm", "swiglu"});
  }
};

}  // namespace hearth
