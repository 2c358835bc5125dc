// The `precision` section of the experiment file: in which type parameters are computed with and states are
// kept.
#pragma once

#include <cstdint>
#include <string>

#include "base/config_visit.h"
#include "base/dtype.h"

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
      "fp32: the master copy that AdamW updates; none: the parameters themselves are updated, rounded at "
      "random");
    v("main_grads_dtype", main_grads_dtype, OnResume::MustConfirm,
      "fp32 | bf16 (with dtype bf16): gradients are kept, and reduced over ranks, in it. Each contribution "
      "is summed in fp32; bf16 rounds the sum to nearest after every micro-batch and every rank, which loses "
      "what is small beside it: for runs bound by memory, with one micro-batch a step or few");
    v("exp_avg_dtype", exp_avg_dtype, OnResume::MustConfirm,
      "fp32 | bf16 (rounded at random): AdamW's first moment");
    v("exp_avg_sq_dtype", exp_avg_sq_dtype, OnResume::MustConfirm,
      "fp32 | bf16 (rounded at random): AdamW's second moment");
    v("fp8_recipe", fp8_recipe, OnResume::MustConfirm, "none");
  }
  // Parameters in fp32 are their own masters.
  bool has_masters() const { return dtype != "fp32" && main_params_dtype == "fp32"; }
  DType grads_dtype() const { return main_grads_dtype == "bf16" ? DType::BF16 : DType::F32; }
  // Bytes of AdamW's state for a parameter.
  int64_t optimizer_bytes() const {
    const auto moment = [](const std::string& word) { return word == "bf16" ? 2 : 4; };
    return (has_masters() ? 4 : 0) + moment(exp_avg_dtype) + moment(exp_avg_sq_dtype);
  }
  void validate(ConfigErrors& e) const {
    e.one_of(dtype, "dtype", {"bf16", "fp32"});
    e.one_of(main_params_dtype, "main_params_dtype", {"fp32", "none"});
    e.one_of(main_grads_dtype, "main_grads_dtype", {"fp32", "bf16"});
    e.require(dtype != "fp32" || main_grads_dtype != "bf16", "main_grads_dtype",
              "bf16 needs dtype bf16: a run in fp32 is for its accuracy, which gradients in bf16 would lose");
    e.one_of(exp_avg_dtype, "exp_avg_dtype", {"fp32", "bf16"});
    e.one_of(exp_avg_sq_dtype, "exp_avg_sq_dtype", {"fp32", "bf16"});
    e.one_of(fp8_recipe, "fp8_recipe", {"none"});
  }
};

}  // namespace hearth
