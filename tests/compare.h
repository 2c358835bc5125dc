// compare(got, want, tol): what every check against a reference uses. Reports the largest error and where it
// is, how many elements miss the tolerance, and how many are not finite; NaN never passes. Header-only, needs
// ATen.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <cstdint>
#include <ostream>

namespace hearth::testing {

struct Diff {
  double max_abs = 0;        // largest |got - want| of finite elements
  int64_t index = -1;        // where, in flat order; -1: no elements
  double got = 0, want = 0;  // the values there
  double largest_want = 0;
  int64_t count = 0, mismatches = 0;  // mismatches: elements with !(|got - want| <= tol)
  int64_t non_finite = 0;             // in got, where want is finite
  bool same_shape = true;
  bool ok() const { return same_shape && mismatches == 0 && non_finite == 0; }
};

inline std::ostream& operator<<(std::ostream& out, const Diff& d) {
  if (!d.same_shape) return out << "shapes differ";
  return out << "max|got-want| " << d.max_abs << " at " << d.index << " (got " << d.got << ", want " << d.want
             << "), largest |want| " << d.largest_want << ", " << d.mismatches << " of " << d.count
             << " beyond tolerance, " << d.non_finite << " not finite";
}

// Both tensors of one shape, any floating dtype and device; compared in fp64. tol is absolute.
inline Diff compare(const at::Tensor& got_in, const at::Tensor& want_in, double tol) {
  Diff diff;
  diff.same_shape = got_in.defined() && want_in.defined() && got_in.sizes() == want_in.sizes();
  if (!diff.same_shape) return diff;
  const at::Tensor got = got_in.detach().cpu().to(at::kDouble).contiguous();
  const at::Tensor want = want_in.detach().cpu().to(at::kDouble).contiguous();
  const double *g = got.const_data_ptr<double>(), *w = want.const_data_ptr<double>();
  diff.count = got.numel();
  for (int64_t i = 0; i < diff.count; ++i) {
    const double error = std::abs(g[i] - w[i]);
    diff.largest_want = std::fmax(diff.largest_want, std::abs(w[i]));
    if (!std::isfinite(g[i]) && std::isfinite(w[i])) ++diff.non_finite;
    if (!(error <= tol)) ++diff.mismatches;
    if (diff.index < 0 || error > diff.max_abs) {
      diff.max_abs = error;
      diff.index = i;
      diff.got = g[i];
      diff.want = w[i];
    }
  }
  return diff;
}

}  // namespace hearth::testing
