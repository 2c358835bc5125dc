// The `precision` section of the experiment file: in which type parameters are computed with and states are
// kept.
#pragma once

#include <string>

#include "base/config_visit.h"

namespace hearth {

struct PrecisionConfig {
  std::string dtype = "bf16";
  std::string main_params_dtype = "fp32";
  std::string main_grads_dtype = "fp32";
  std::string exp_avg_dtype = "fp32";
  std::string exp_avg_sq_dtype = "fp32";
  std::string fp8_recipe = "none";
  bool operator==(const PrecisionConfig&) const = default;
  template <class V>
  void visit(V&& v) {
    v("dtype", dtype, OnResume::MustConfirm,
      "bf16 | fp32: parameters and activations of forward and backward");
    v("main_params_dtype", main_params_dtype, OnResume::MustConfirm,
      "fp32: the master copy that AdamW updates");
    v("main_grads_dtype", main_grads_dtype, OnResume::MustConfirm,
      "fp32: gradients are summed and reduced in it");
    v("exp_avg_dtype", exp_avg_dtype, OnResume::MustConfirm, "fp32: AdamW's first moment");
    v("exp_avg_sq_dtype", exp_avg_sq_dtype, OnResume::MustConfirm, "fp32: AdamW's second moment");
    v("fp8_recipe", fp8_recipe, OnResume::MustConfirm, "none");
  }
  void validate(ConfigErrors& e) const {
    e.one_of(dtype, "dtype", {"bf16", "fp32"});
    e.one_of(main_params_dtype, "main_params_dtype", {"fp32"});
    e.one_of(main_grads_dtype, "main_grads_dtype", {"fp32"});
    e.one_of(exp_avg_dtype, "exp_avg_dtype", {"fp32"});
    e.one_of(exp_avg_sq_dtype, "exp_avg_sq_dtype", {"fp32"});
    e.one_of(fp8_recipe, "fp8_recipe", {"none"});
  }
};

}  // namespace hearth
