// Which rows of one rank see which rows of another.
//
// Off the diagonal (keys of a chunk that lies before the queries' chunk) causality masks nothing, and only
// one document can have rows in both chunks: two documents cannot both begin in or before the earlier chunk
// and end in or behind the later one. That document's rows are the end of the keys and the beginning of the
// queries. Between ranks r (queries) and s (keys), c rows a chunk:
//   s < r: all local queries (chunks r, mirror of r) against chunk s; its mirror lies behind both.
//   s > r: the queries of the mirror of r against all local keys (chunks s, mirror of s); chunk r sees
//   neither.
// In both cases the allowed pairs are one rectangle: local queries that begin a range, local keys that end
// one. Each costs 2 c^2 pairs without borders: the load is balanced.
#include <algorithm>

#include "base/error.h"
#include "parallel/context/context_attention.h"
#include "parallel/tensor/upload.h"

namespace hearth {
namespace {

// The documents of one sequence.
class Documents {
 public:
  Documents(const std::vector<int32_t>& starts, int64_t sequence) {
    starts_.push_back(0);
    for (const int32_t start : starts) {
      HEARTH_REQUIRE(start >= 0 && start < sequence, "document start {} outside a sequence of {} tokens",
                     start, sequence);
      if (start > 0) starts_.push_back(start);
    }
    HEARTH_REQUIRE(std::is_sorted(starts_.begin(), starts_.end()), "document starts are not ascending");
    starts_.push_back(sequence);
  }
  int64_t begin_at(int64_t position) const { return *(after(position) - 1); }
  int64_t end_at(int64_t position) const { return *after(position); }

 private:
  std::vector<int64_t>::const_iterator after(int64_t position) const {
    return std::upper_bound(starts_.begin(), starts_.end() - 1, position);
  }
  std::vector<int64_t> starts_;  // 0 first, the end of the sequence last
};

struct Zigzag {
  int64_t size, chunk;
  int64_t head(int64_t rank) const { return rank * chunk; }  // first position of chunk `rank`
  int64_t mirror(int64_t rank) const { return (2 * size - 1 - rank) * chunk; }
};

int64_t rows_before(int64_t position, int64_t chunk_begin, int64_t chunk) {
  return std::clamp<int64_t>(position - chunk_begin, 0, chunk);
}

// Sequence `b` alone; query_count 0 where the ranks share no document.
ContextRectangle rectangle_of(const Documents& documents, Zigzag zigzag, int64_t rank, int64_t source,
                              int64_t b) {
  const int64_t c = zigzag.chunk;
  ContextRectangle r{.batch_begin = b, .batch_count = 1};
  if (source < rank) {
    const int64_t last_key = zigzag.head(source) + c - 1;
    const int64_t begin = documents.begin_at(last_key), end = documents.end_at(last_key);
    r.query_count = rows_before(end, zigzag.head(rank), c) + rows_before(end, zigzag.mirror(rank), c);
    r.key_begin = rows_before(begin, zigzag.head(source), c);
    r.key_count = c - r.key_begin;
  } else {
    const int64_t last_key = zigzag.mirror(source) + c - 1;
    const int64_t begin = documents.begin_at(last_key), end = documents.end_at(last_key);
    r.query_begin = c;
    r.query_count = rows_before(end, zigzag.mirror(rank), c);
    r.key_begin = rows_before(begin, zigzag.head(source), c) + rows_before(begin, zigzag.mirror(source), c);
    r.key_count = 2 * c - r.key_begin;
  }
  return r;
}

// Neighbouring sequences with the same rectangle are one block: without borders, the whole batch.
void append(std::vector<ContextRectangle>& all, const ContextRectangle& r) {
  if (r.query_count == 0) return;
  if (!all.empty()) {
    ContextRectangle& last = all.back();
    if (last.batch_begin + last.batch_count == r.batch_begin && last.query_begin == r.query_begin &&
        last.query_count == r.query_count && last.key_begin == r.key_begin && last.key_count == r.key_count) {
      ++last.batch_count;
      return;
    }
  }
  all.push_back(r);
}

// Cuts rows at `positions` (one sequence, first row `row`) into runs of one document.
void append_ranges(std::vector<context::RowRange>& ranges, const Documents& documents,
                   const std::vector<int64_t>& positions, int64_t row) {
  const auto count = static_cast<int64_t>(positions.size());
  int64_t end = -1;  // of the document of the last range
  for (int64_t i = 0; i < count; ++i) {
    const int64_t position = positions[static_cast<size_t>(i)];
    if (position >= end) {
      end = documents.end_at(position);
      ranges.push_back({row + i, 0});
    }
    ++ranges.back().count;
  }
}

void fill_row_order(ContextLayout& layout, at::Device device) {
  std::vector<int64_t> by_rank, by_position(static_cast<size_t>(layout.batch * layout.sequence));
  for (int64_t rank = 0; rank < layout.size; ++rank) {
    const auto positions = context_positions(layout.sequence, layout.size, rank);
    for (int64_t b = 0; b < layout.batch; ++b)
      for (const int64_t position : positions) {
        const int64_t row = b * layout.sequence + position;
        by_position[static_cast<size_t>(row)] = static_cast<int64_t>(by_rank.size());
        by_rank.push_back(row);
      }
  }
  layout.rows_by_rank = upload(by_rank, device);
  layout.rows_by_position = upload(by_position, device);
}

}  // namespace

std::vector<int64_t> context_positions(int64_t sequence, int64_t size, int64_t rank) {
  HEARTH_REQUIRE(size >= 1 && rank >= 0 && rank < size, "context parallel: rank {} of {}", rank, size);
  const int64_t pieces = context_chunks(size);
  HEARTH_CHECK(sequence > 0 && sequence % pieces == 0, Config,
               "context parallel: a sequence of {} tokens cannot be cut in {} chunks for {} ranks; choose "
               "data.seq_length as a multiple of {}",
               sequence, pieces, size, pieces);
  std::vector<int64_t> positions;
  const auto add = [&](int64_t begin, int64_t count) {
    for (int64_t i = 0; i < count; ++i) positions.push_back(begin + i);
  };
  if (size == 1) {
    add(0, sequence);
    return positions;
  }
  const Zigzag zigzag{size, sequence / pieces};
  add(zigzag.head(rank), zigzag.chunk);
  add(zigzag.mirror(rank), zigzag.chunk);
  return positions;
}

ContextLayout make_context_layout(const std::vector<std::vector<int32_t>>& document_starts, int64_t sequence,
                                  int64_t size, int64_t rank, at::Device device, at::ScalarType dtype) {
  const auto mine = context_positions(sequence, size, rank);
  const auto whole = context_positions(sequence, 1, 0);
  ContextLayout layout;
  layout.batch = static_cast<int64_t>(document_starts.size());
  layout.sequence = sequence;
  layout.local = sequence / size;
  layout.size = size;
  layout.rank = rank;
  layout.rectangles.resize(static_cast<size_t>(size));
  std::vector<context::RowRange> local_ranges, whole_ranges;
  for (int64_t b = 0; b < layout.batch; ++b) {
    const Documents documents(document_starts[static_cast<size_t>(b)], sequence);
    append_ranges(local_ranges, documents, mine, b * layout.local);
    append_ranges(whole_ranges, documents, whole, b * sequence);
    for (int64_t source = 0; source < size; ++source)
      if (source != rank)
        append(layout.rectangles[static_cast<size_t>(source)],
               rectangle_of(documents, {size, layout.local / 2}, rank, source, b));
  }
  layout.local_documents =
      context::make_packed_documents(std::move(local_ranges), layout.batch, layout.local, device, dtype);
  layout.whole_documents =
      context::make_packed_documents(std::move(whole_ranges), layout.batch, sequence, device, dtype);
  fill_row_order(layout, device);
  return layout;
}

}  // namespace hearth
