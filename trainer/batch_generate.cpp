#include "trainer/batch_generate.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace hearth {
namespace {

int64_t length_of(const BatchPrompt& prompt) {
  return static_cast<int64_t>(prompt.ids.size());
}
int64_t end_of(const BatchPrompt& prompt) {
  return length_of(prompt) + prompt.max_new_tokens;
}

// Sequences that advance together.
struct Group {
  std::vector<size_t> prompts;
  int64_t first = 0;  // position of the first token that is made: the length of the shortest prompt
  int64_t end = 0;    // behind the last position
  int64_t calls() const { return end - first; }  // each gives the tokens of one position
};

// Sequences of like length together.
std::vector<Group> make_groups(const std::vector<BatchPrompt>& prompts, int64_t tokens_per_group) {
  std::vector<size_t> order(prompts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return end_of(prompts[a]) < end_of(prompts[b]); });
  std::vector<Group> groups;
  for (const size_t i : order) {
    const int64_t length = length_of(prompts[i]), end = end_of(prompts[i]);
    HEARTH_REQUIRE(length > 0 && prompts[i].max_new_tokens > 0,
                   "a prompt of {} tokens to be continued by {}: both must be > 0", length,
                   prompts[i].max_new_tokens);
    const auto more = [&] { return static_cast<int64_t>(groups.back().prompts.size() + 1); };
    if (groups.empty() || more() * end > tokens_per_group) groups.push_back({.first = length});
    Group& group = groups.back();
    group.prompts.push_back(i);
    group.first = std::min(group.first, length);
    group.end = end;
  }
  return groups;
}

void generate_group(InferenceModel& model, const Group& group, const std::vector<BatchPrompt>& prompts,
                    const BatchGenerationOptions& options, const CounterRng& rng,
                    std::vector<std::vector<int32_t>>& out) {
  const size_t rows = group.prompts.size();
  auto caches = model.make_caches(group.end, static_cast<int64_t>(rows));
  std::vector<uint8_t> ended(rows, 0);
  std::vector<int64_t> pending;  // [rows, tokens]
  for (const size_t i : group.prompts)
    pending.insert(pending.end(), prompts[i].ids.begin(), prompts[i].ids.begin() + group.first);
  TokenDraw draw{.temperature = options.temperature, .vocab = options.vocab};
  for (int64_t position = group.first; position < group.end; ++position) {
    draw.uniform.assign(rows, 0.0);
    for (size_t row = 0; row < rows; ++row) {
      const BatchPrompt& prompt = prompts[group.prompts[row]];
      const int64_t number = position - length_of(prompt);
      if (number >= 0) draw.uniform[row] = rng.uniform(prompt.first_draw + static_cast<uint64_t>(number));
    }
    const std::vector<int32_t> drawn = model.next_tokens(pending, static_cast<int64_t>(rows), caches, draw);
    pending.assign(drawn.begin(), drawn.end());
    for (size_t row = 0; row < rows; ++row) {
      const BatchPrompt& prompt = prompts[group.prompts[row]];
      std::vector<int32_t>& made = out[group.prompts[row]];
      if (position < length_of(prompt)) {
        pending[row] = prompt.ids[static_cast<size_t>(position)];
      } else if (!ended[row] && position < end_of(prompt)) {
        made.push_back(drawn[row]);
        ended[row] =
            std::find(options.eos_ids.begin(), options.eos_ids.end(), drawn[row]) != options.eos_ids.end();
      }
    }
  }
}

}  // namespace

int64_t generation_calls(const std::vector<BatchPrompt>& prompts, const BatchGenerationOptions& options) {
  int64_t calls = 0;
  for (const Group& group : make_groups(prompts, options.tokens_per_group)) calls += group.calls();
  return calls;
}

std::vector<std::vector<int32_t>> generate_batch(InferenceModel& model,
                                                 const std::vector<BatchPrompt>& prompts,
                                                 const BatchGenerationOptions& options, const CounterRng& rng,
                                                 int64_t calls) {
  const int64_t own = generation_calls(prompts, options);
  HEARTH_REQUIRE(calls >= own, "{} calls for prompts that take {}", calls, own);
  std::vector<std::vector<int32_t>> out(prompts.size());
  for (const Group& group : make_groups(prompts, options.tokens_per_group))
    generate_group(model, group, prompts, options, rng, out);
  for (int64_t i = own; i < calls; ++i) {
    auto caches = model.make_caches(/*capacity=*/1, /*batch=*/1);
    model.next_tokens({0}, /*batch=*/1, caches,
                      {.temperature = 0.0, .vocab = options.vocab, .uniform = {0.0}});
  }
  return out;
}

}  // namespace hearth
