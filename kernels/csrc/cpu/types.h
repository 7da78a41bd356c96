// Arguments of the CPU kernels: plain records, checked by the binding before they get here.
#pragma once

#include <cstdint>

namespace relay {

struct BFloat16 {
  uint16_t bits;
};

// A [., ., heads, D] tensor, contiguous along D; strides in elements.
template <typename T>
struct Heads {
  T* data;
  int64_t outer_stride, token_stride, head_stride;

  T* at(int64_t outer, int64_t token, int64_t head) const {
    return data + outer * outer_stride + token * token_stride + head * head_stride;
  }
};

// Integers of the rows, int32 or int64; `fallback` + `step` * row where the caller gave none.
struct RowIntegers {
  const void* data = nullptr;
  bool is_wide = false;
  int64_t stride = 1, fallback = 0, step = 0;

  int64_t operator[](int64_t row) const {
    if (data == nullptr) return fallback + step * row;
    return is_wide ? static_cast<const int64_t*>(data)[row * stride] : static_cast<const int32_t*>(data)[row * stride];
  }
};

// softmax(scale * q k^T) v over slot caches; see decode_attention/reference.py.
template <typename T>
struct Attention {
  Heads<const T> query, new_key, new_value;  // new_key.data null: the new tokens are in the cache already
  Heads<T> key_cache, value_cache, output;
  RowIntegers cache_seqlens, num_new, slots;
  int64_t num_rows, num_tokens, num_heads, num_kv_heads, head_size;
  float scale;
};

}  // namespace relay
