// Attention of the new tokens of one row and one key/value head, and their append.
//
// The keys and values are read where they lie, block by block, and never beyond the row's length. Two passes: scores
// of a few query rows at a time into `scratch`, softmax there, then the weighted sum of the values.
#pragma once

#include "vector.h"

namespace relay {
namespace RELAY_ISA {
namespace {

constexpr int kMaxTileRows = 4;  // query rows that share one read of the values

// lane l: the sum of a over lanes l and l ^ H where bit H of l is 0, of b where it is 1.
template <int H>
RELAY_INLINE Vec fold(Vec a, Vec b) {
#define RELAY_KEEP(l) ((l) & H ? (l) + kLanes : (l))
#define RELAY_SWAP(l) ((l) & H ? ((l) ^ H) + kLanes : ((l) ^ H))
#define RELAY_FOUR(f, l) f(l), f(l + 1), f(l + 2), f(l + 3)
#if defined(__AVX512F__)
#define RELAY_ALL(f) RELAY_FOUR(f, 0), RELAY_FOUR(f, 4), RELAY_FOUR(f, 8), RELAY_FOUR(f, 12)
#elif defined(__AVX2__)
#define RELAY_ALL(f) RELAY_FOUR(f, 0), RELAY_FOUR(f, 4)
#else
#define RELAY_ALL(f) RELAY_FOUR(f, 0)
#endif
  return __builtin_shufflevector(a, b, RELAY_ALL(RELAY_KEEP)) + __builtin_shufflevector(a, b, RELAY_ALL(RELAY_SWAP));
#undef RELAY_ALL
#undef RELAY_FOUR
#undef RELAY_SWAP
#undef RELAY_KEEP
}

// Lanes l hold parts of <query, keys[l % N]>, which add up over lanes of equal l % N. V: vectors of a head, 0 for
// `num_vectors`. Keys behind `last` count as `last`, so that nothing behind it is read; kAll: there are N.
template <int N, int V, bool kAll, typename T>
RELAY_INLINE Vec dots(const float* query, const T* keys, int64_t stride, int64_t last, int num_vectors) {
  if constexpr (N == 1) {
    Vec sum = load(query) * load(keys);
    for (int c = 1; c < (V ? V : num_vectors); ++c) sum += load(query + c * kLanes) * load(keys + c * kLanes);
    return sum;
  } else {
    constexpr int kHalf = N / 2;
    const int64_t step = kAll || last > kHalf ? kHalf : last;
    return fold<kHalf>(dots<kHalf, V, kAll>(query, keys, stride, last, num_vectors),
                       dots<kHalf, V, kAll>(query, keys + step * stride, stride, last - step, num_vectors));
  }
}

// The keys or values of one row and key/value head, block by block.
template <typename T>
struct CachedHead {
  const T* data;
  const BlockTable* blocks;
  int64_t row, block_stride, token_stride;

  // Where the first token of the row's block `column` lies; the others follow.
  const T* block(int64_t column) const { return data + blocks->at(row, column) * block_stride; }
};

template <typename T>
CachedHead<T> cached_head(const Heads<T>& cache, const BlockTable& blocks, int64_t row, int64_t kv_head) {
  return {cache.at(0, 0, kv_head), &blocks, row, cache.outer_stride, cache.token_stride};
}

// One query row of a tile: its scaled query, scores and then weights of `length` keys, where its result goes.
template <typename T>
struct TileRow {
  const float* query;
  float* weights;
  int64_t length;
  float best, total;
  T* output;
};

// Scores of one query row over the keys first..first + kLanes - 1; -inf behind its length. `keys` begins at `first`.
template <int V, typename T>
RELAY_INLINE Vec score_keys(const TileRow<T>& row, const T* keys, int64_t stride, int64_t first, int64_t head_size) {
  const int num_vectors = static_cast<int>(head_size / kLanes);
  const int64_t last = row.length - 1 - first;
  Vec sums = {};
  if (V || num_vectors) {
    sums = last >= kLanes - 1 ? dots<kLanes, V, true>(row.query, keys, stride, last, num_vectors)
                              : dots<kLanes, V, false>(row.query, keys, stride, last, num_vectors);
  }
  for (int64_t d = V ? head_size : num_vectors * kLanes; d < head_size; ++d) {
    for (int i = 0; i < kLanes; ++i) sums[i] += row.query[d] * to_float(keys[(i < last ? i : last) * stride + d]);
  }
  for (int64_t i = last + 1; i < kLanes; ++i) sums[i] = -__builtin_inff();
  return sums;
}

// Scores of all rows of a tile, padded with -inf to whole vectors, and the best of each. Keys are read once: the rows
// take turns at those in the cache. Lengths ascend within a tile.
template <int V, typename T>
void score(TileRow<T>* rows, int num_rows, const CachedHead<T>& cache, int64_t head_size) {
  Vec best[kMaxTileRows];
  for (int r = 0; r < num_rows; ++r) best[r] = broadcast(-__builtin_inff());
  const int64_t longest = rows[num_rows - 1].length;
  const int64_t block_size = cache.blocks->block_size;
  for (int64_t column = 0, start = 0; start < longest; ++column, start += block_size) {
    const T* keys = cache.block(column);
    const int64_t stop = longest - start < block_size ? longest : start + block_size;
    // No vector of keys straddles two blocks.
    for (int64_t first = start; first < stop; first += kLanes, keys += kLanes * cache.token_stride) {
      for (int r = 0; r < num_rows; ++r) {
        if (first >= rows[r].length) continue;
        const Vec scores = score_keys<V>(rows[r], keys, cache.token_stride, first, head_size);
        store(rows[r].weights + first, scores);
        best[r] = max(best[r], scores);
      }
    }
  }
  for (int r = 0; r < num_rows; ++r) rows[r].best = max_lane(best[r]);
}

// Turns scores into e^(score - best), in place; returns their sum.
RELAY_INLINE float exponentiate(float* scores, int64_t length, float best) {
  Vec sum = {};
  for (int64_t first = 0; first < length; first += kLanes) {
    const Vec weights = exp_nonpositive(load(scores + first) - best);
    store(scores + first, weights);
    sum += weights;
  }
  return static_cast<float>(sum_lanes(to_double(sum)));
}

// Calls `visit(values, j)` for the tokens j of [first, last), `values` being where the value of token j lies.
template <typename T, typename Visit>
RELAY_INLINE void for_each_value(const CachedHead<T>& cache, int64_t first, int64_t last, Visit visit) {
  const int64_t block_size = cache.blocks->block_size;
  int64_t column = first == 0 ? 0 : first / block_size;  // The one division: it takes as long as some values.
  for (int64_t start = column * block_size; first < last; ++column, start += block_size) {
    const int64_t stop = last - start < block_size ? last : start + block_size;
    const T* values = cache.block(column) + (first - start) * cache.token_stride;
    for (; first < stop; ++first, values += cache.token_stride) visit(values, first);
  }
}

// Adds weights * values to C vectors of R rows, and writes them divided by the total.
template <int R, int C, typename T>
RELAY_INLINE void weigh_columns(const TileRow<T>* rows, const CachedHead<T>& cache, int64_t column) {
  Vec sums[R][C] = {};
  // Lengths ascend within a tile, so that all rows see the first row's values.
  for_each_value(cache, 0, rows[0].length, [&](const T* values, int64_t j) {
    Vec value[C];
    for (int c = 0; c < C; ++c) value[c] = load(values + column + c * kLanes);
    for (int r = 0; r < R; ++r) {
      for (int c = 0; c < C; ++c) sums[r][c] += value[c] * rows[r].weights[j];
    }
  });
  for (int r = 0; r < R; ++r) {
    for_each_value(cache, rows[0].length, rows[r].length, [&](const T* values, int64_t j) {
      for (int c = 0; c < C; ++c) sums[r][c] += load(values + column + c * kLanes) * rows[r].weights[j];
    });
    for (int c = 0; c < C; ++c) {
      const Vec mean = sums[r][c] / rows[r].total;
      for (int i = 0; i < kLanes; ++i) round_to(mean[i], rows[r].output + column + c * kLanes + i);
    }
  }
}

template <int R, typename T>
void weigh(const TileRow<T>* rows, const CachedHead<T>& cache, int64_t head_size) {
  int64_t column = 0;
  for (; column + 4 * kLanes <= head_size; column += 4 * kLanes) weigh_columns<R, 4>(rows, cache, column);
  for (; column + 2 * kLanes <= head_size; column += 2 * kLanes) weigh_columns<R, 2>(rows, cache, column);
  for (; column + kLanes <= head_size; column += kLanes) weigh_columns<R, 1>(rows, cache, column);
  for (; column < head_size; ++column) {
    for (int r = 0; r < R; ++r) {
      float sum = 0.0f;
      for_each_value(cache, 0, rows[r].length,
                     [&](const T* values, int64_t j) { sum += rows[r].weights[j] * to_float(values[column]); });
      round_to(sum / rows[r].total, rows[r].output + column);
    }
  }
}

template <typename T>
void score_any(TileRow<T>* rows, int num_rows, const CachedHead<T>& keys, int64_t head_size) {
  switch (head_size) {
    case 32: return score<32 / kLanes>(rows, num_rows, keys, head_size);
    case 64: return score<64 / kLanes>(rows, num_rows, keys, head_size);
    case 128: return score<128 / kLanes>(rows, num_rows, keys, head_size);
    default: return score<0>(rows, num_rows, keys, head_size);
  }
}

template <typename T>
void append(const Attention<T>& a, int64_t row, int64_t kv_head) {
  const int64_t start = a.cache_seqlens[row], count = a.num_new[row], block_size = a.blocks.block_size;
  for (int64_t t = 0; t < count; ++t) {
    const int64_t block = a.blocks.at(row, (start + t) / block_size), offset = (start + t) % block_size;
    // Not memcpy: the new tokens may be views of the cache.
    __builtin_memmove(a.key_cache.at(block, offset, kv_head), a.new_key.at(row, t, kv_head), a.head_size * sizeof(T));
    __builtin_memmove(a.value_cache.at(block, offset, kv_head), a.new_value.at(row, t, kv_head),
                      a.head_size * sizeof(T));
  }
}

// scratch: `attend_scratch` floats.
template <typename T>
void attend(const Attention<T>& a, int64_t row, int64_t kv_head, float* scratch, int64_t longest) {
  if (a.new_key.data != nullptr) append(a, row, kv_head);
  const int64_t group = a.num_heads / a.num_kv_heads, count = a.num_new[row];
  const int64_t num_queries = count * group;
  const CachedHead<T> keys = cached_head(a.key_cache, a.blocks, row, kv_head);
  const CachedHead<T> values = cached_head(a.value_cache, a.blocks, row, kv_head);
  float* queries = scratch + kMaxTileRows * (longest + kLanes);
  for (int64_t first = 0; first < num_queries;) {
    const int64_t left = num_queries - first;
    const int num_tile_rows = left >= 4 ? 4 : left >= 2 ? 2 : 1;
    TileRow<T> tile[kMaxTileRows];
    for (int r = 0; r < num_tile_rows; ++r) {
      const int64_t token = (first + r) / group, head = kv_head * group + (first + r) % group;
      const T* from = a.query.at(row, token, head);
      float* query = queries + r * a.head_size;
      for (int64_t d = 0; d < a.head_size; ++d) query[d] = to_float(from[d]) * a.scale;
      tile[r] = {query, scratch + r * (longest + kLanes), a.cache_seqlens[row] + token + 1, 0.0f, 0.0f,
                 a.output.at(row, token, head)};
    }
    score_any(tile, num_tile_rows, keys, a.head_size);
    for (int r = 0; r < num_tile_rows; ++r) {
      tile[r].total = exponentiate(tile[r].weights, tile[r].length, tile[r].best);
    }
    if (num_tile_rows == 4) {
      weigh<4>(tile, values, a.head_size);
    } else if (num_tile_rows == 2) {
      weigh<2>(tile, values, a.head_size);
    } else {
      weigh<1>(tile, values, a.head_size);
    }
    first += num_tile_rows;
  }
  for (int64_t token = count; token < a.num_tokens; ++token) {  // padding
    for (int64_t g = 0; g < group; ++g) {
      __builtin_memset(a.output.at(row, token, kv_head * group + g), 0, a.head_size * sizeof(T));
    }
  }
}

}  // namespace
}  // namespace RELAY_ISA
}  // namespace relay
