#include "parallel/context/context_attention.h"

#include "base/error.h"
#include "parallel/context/all_to_all_attention.h"
#include "parallel/context/attention_call.h"
#include "parallel/context/ring_attention.h"

namespace hearth {

at::Tensor context_attention(const at::Tensor& qkv_NHW, int64_t num_heads, int64_t num_kv_heads,
                             const ContextLayout& layout, ContextMethod method, Comm& cp,
                             context::BlockKernels kernels) {
  HEARTH_REQUIRE(num_kv_heads > 0 && num_heads % num_kv_heads == 0,
                 "context attention: {} heads do not share {} key/value heads evenly", num_heads,
                 num_kv_heads);
  HEARTH_REQUIRE(qkv_NHW.dim() == 3 && qkv_NHW.size(0) == layout.batch * layout.local &&
                     qkv_NHW.size(1) == num_heads + 2 * num_kv_heads,
                 "context attention: qkv needs {} rows of {} + 2 x {} heads, its shape is {}",
                 layout.batch * layout.local, num_heads, num_kv_heads, context::shape_text(qkv_NHW));
  HEARTH_REQUIRE(cp.size() == layout.size && cp.rank() == layout.rank,
                 "context attention: the layout is of rank {} of {}, the group's is {} of {}", layout.rank,
                 layout.size, cp.rank(), cp.size());
  // With documents every micro-batch has blocks of its own shapes.
  const bool shapes_recur = layout.whole_documents.ranges.empty();
  const context::AttentionCall call{num_heads, num_kv_heads, &layout, &cp,
                                    shapes_recur ? kernels : context::BlockKernels::Flash};
  if (method == ContextMethod::Ring) return context::ring_attention(qkv_NHW, call);
  HEARTH_CHECK(all_to_all_fits(num_heads, num_kv_heads, layout.size), Config,
               "context parallel by all-to-all: {} heads and {} key/value heads are not multiples of {} "
               "ranks; use the "
               "ring",
               num_heads, num_kv_heads, layout.size);
  return context::all_to_all_attention(qkv_NHW, call);
}

}  // namespace hearth
