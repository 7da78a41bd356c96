// `append_kv` and `decode_attention` for Python.
#include <tvm/ffi/function.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <vector>

#include "arguments.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace relay {
namespace {

constexpr int64_t kBlockStep = 16;  // decode_attention/checks.py: BLOCK_STEP
constexpr int64_t kWorkOfAThread = 1 << 15;
// Products below which another thread costs more than it takes over: about 5 us of them.
constexpr int64_t kMostColumns = int64_t{1} << 40;
// More cached tokens of one row than any memory holds; the size of the scratch does not overflow below.

// The rows' integers, all values checked: nothing that passes makes the kernels leave the cache, and no two rows write to
// one block. The length and the blocks of a row without new tokens are not used, so they may be anything.
template <typename T>
bool take_rows(const TensorView& cache, const TensorView& cache_seqlens, const Optional<TensorView>& num_new,
               const Optional<TensorView>& block_table, Attention<T>* a) {
  const int64_t num_blocks = cache.size(0), block_size = cache.size(1);
  a->num_new.fallback = a->num_tokens;
  if (!take_integers(cache_seqlens, kCpu, a->num_rows, &a->cache_seqlens)) return false;
  if (num_new.has_value() && !take_integers(num_new.value(), kCpu, a->num_rows, &a->num_new)) return false;
  if (block_table.has_value() && !take_table(block_table.value(), kCpu, a->num_rows, &a->blocks)) return false;
  if (!block_table.has_value() && a->num_rows > num_blocks) return false;
  a->blocks.block_size = block_size;
  if (a->blocks.num_columns > 1 && block_size % kBlockStep != 0) return false;
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  const int64_t num_columns = a->blocks.num_columns;
  const int64_t capacity = block_size > kMost / num_columns ? kMost : block_size * num_columns;
  std::vector<int64_t> written;
  for (int64_t row = 0; row < a->num_rows; ++row) {
    const int64_t length = a->cache_seqlens[row], added = a->num_new[row];
    if (length < 0 || added < 0 || added > a->num_tokens) return false;
    if (added == 0) continue;
    if (length > capacity - added) return false;
    for (int64_t column = 0; column * block_size < length + added; ++column) {
      const int64_t block = a->blocks.at(row, column);
      if (block < 0 || block >= num_blocks) return false;
      if (block_table.has_value() && (column + 1) * block_size > length) written.push_back(block);
    }
  }
  return are_distinct(&written);
}

// The caches and, where given, the new tokens: equal types and shapes.
template <typename T>
bool take_caches(const TensorView& key_cache, const TensorView& value_cache, const Optional<TensorView>& new_key,
                 const Optional<TensorView>& new_value, DLDataType dtype, Attention<T>* a) {
  if (!take_heads(key_cache, dtype, &a->key_cache) || !take_heads(value_cache, dtype, &a->value_cache)) return false;
  a->num_kv_heads = key_cache.size(2);
  a->head_size = key_cache.size(3);
  if (a->num_kv_heads == 0 ||
      !has_shape(value_cache, key_cache.size(0), key_cache.size(1), a->num_kv_heads, a->head_size)) {
    return false;
  }
  if (new_key.has_value() != new_value.has_value()) return false;
  if (!new_key.has_value()) return true;
  if (has_shared_elements(key_cache) || has_shared_elements(value_cache)) return false;
  return take_heads(new_key.value(), dtype, &a->new_key) && take_heads(new_value.value(), dtype, &a->new_value) &&
         has_shape(new_key.value(), a->num_rows, a->num_tokens, a->num_kv_heads, a->head_size) &&
         has_shape(new_value.value(), a->num_rows, a->num_tokens, a->num_kv_heads, a->head_size);
}

template <typename T>
void run(const Attention<T>& a, void (*attend)(const Attention<T>&, int64_t, int64_t, float*, int64_t),
         int64_t num_threads) {
  int64_t longest = 0;
  double work = 0.0;  // Products of sizes may exceed 64 bits.
  for (int64_t row = 0; row < a.num_rows; ++row) {
    const int64_t num_new = a.num_new[row];
    if (num_new == 0) continue;  // Its length may be anything.
    const int64_t length = a.cache_seqlens[row] + num_new;
    longest = std::max(longest, length);
    work += 2.0 * static_cast<double>(num_new * a.num_heads * a.head_size) * static_cast<double>(length);
  }
  if (longest > kMostColumns) throw std::bad_alloc();
  num_threads = limit_threads(num_threads, work / kWorkOfAThread);
  const int64_t num_items = a.num_rows * a.num_kv_heads;
  const int64_t grain = std::max<int64_t>(1, num_items / (8 * num_threads));
  const int64_t scratch_size = cpu_kernels().attend_scratch(longest, a.head_size);
  float* scratch = reserve_scratch(num_threads * scratch_size);
  parallel_for(num_items, grain, num_threads, [&](int64_t begin, int64_t end, int64_t worker) {
    for (int64_t item = begin; item < end; ++item) {
      attend(a, item / a.num_kv_heads, item % a.num_kv_heads, scratch + worker * scratch_size, longest);
    }
  });
}

template <typename T>
bool decode_attention_as(const TensorView& output, const TensorView& query, const TensorView& key_cache,
                         const TensorView& value_cache, const TensorView& cache_seqlens,
                         const Optional<TensorView>& new_key, const Optional<TensorView>& new_value,
                         const Optional<TensorView>& num_new, const Optional<TensorView>& block_table, Optional<double> scale,
                         int64_t num_threads, void (*attend)(const Attention<T>&, int64_t, int64_t, float*, int64_t)) {
  Attention<T> a{};
  const DLDataType dtype = query.dtype();
  if (!take_heads(query, dtype, &a.query) || !take_heads(output, dtype, &a.output)) return false;
  a.num_rows = query.size(0);
  a.num_tokens = query.size(1);
  a.num_heads = query.size(2);
  a.scale = static_cast<float>(scale.has_value() ? scale.value() : 1.0 / std::sqrt(double(query.size(3))));
  if (scale.has_value() && !std::isfinite(scale.value())) return false;
  if (!take_caches(key_cache, value_cache, new_key, new_value, dtype, &a)) return false;
  if (a.num_heads % a.num_kv_heads != 0 || query.size(3) != a.head_size) return false;
  if (!has_shape(output, a.num_rows, a.num_tokens, a.num_heads, a.head_size)) return false;
  if (!take_rows(key_cache, cache_seqlens, num_new, block_table, &a)) return false;
  if (a.head_size > 0) run(a, attend, num_threads);
  return true;
}

// Writes the attention of the new tokens to `output`, after appending them where given. False: refused, nothing done.
bool decode_attention(TensorView output, TensorView query, TensorView key_cache, TensorView value_cache,
                      TensorView cache_seqlens, Optional<TensorView> new_key, Optional<TensorView> new_value,
                      Optional<TensorView> num_new, Optional<TensorView> block_table, Optional<double> scale,
                      int64_t num_threads) {
  if (has_type(query, kDLFloat, 32)) {
    return decode_attention_as<float>(output, query, key_cache, value_cache, cache_seqlens, new_key, new_value,
                                      num_new, block_table, scale, num_threads, cpu_kernels().attend_float32);
  }
  if (has_type(query, kDLBfloat, 16)) {
    return decode_attention_as<BFloat16>(output, query, key_cache, value_cache, cache_seqlens, new_key, new_value,
                                         num_new, block_table, scale, num_threads, cpu_kernels().attend_bfloat16);
  }
  return false;
}

template <typename T>
bool append_kv_as(const TensorView& key_cache, const TensorView& value_cache, const TensorView& new_key,
                  const TensorView& new_value, const TensorView& cache_seqlens, const Optional<TensorView>& num_new,
                  const Optional<TensorView>& block_table, void (*append)(const Attention<T>&, int64_t, int64_t)) {
  Attention<T> a{};
  if (new_key.ndim() != 4) return false;
  a.num_rows = new_key.size(0);
  a.num_tokens = new_key.size(1);
  if (!take_caches<T>(key_cache, value_cache, new_key, new_value, key_cache.dtype(), &a)) return false;
  if (!take_rows(key_cache, cache_seqlens, num_new, block_table, &a)) return false;
  for (int64_t row = 0; row < a.num_rows && a.head_size > 0; ++row) {
    for (int64_t head = 0; head < a.num_kv_heads; ++head) append(a, row, head);
  }
  return true;
}

// Appends the new tokens to the caches. False: refused, nothing done.
bool append_kv(TensorView key_cache, TensorView value_cache, TensorView new_key, TensorView new_value,
               TensorView cache_seqlens, Optional<TensorView> num_new, Optional<TensorView> block_table) {
  if (has_type(key_cache, kDLFloat, 32)) {
    return append_kv_as<float>(key_cache, value_cache, new_key, new_value, cache_seqlens, num_new, block_table,
                               cpu_kernels().append_float32);
  }
  if (has_type(key_cache, kDLBfloat, 16)) {
    return append_kv_as<BFloat16>(key_cache, value_cache, new_key, new_value, cache_seqlens, num_new, block_table,
                                  cpu_kernels().append_bfloat16);
  }
  return false;
}

}  // namespace
}  // namespace relay

TVM_FFI_DLL_EXPORT_TYPED_FUNC(decode_attention, relay::decode_attention);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(append_kv, relay::append_kv);
