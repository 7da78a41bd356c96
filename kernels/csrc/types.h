// Arguments of the CPU kernels: plain records, checked by the binding before they get here.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define RELAY_ACCESS __host__ __device__
#else
#define RELAY_ACCESS
#endif

namespace relay {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
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

  RELAY_ACCESS int64_t operator[](int64_t row) const {
    if (data == nullptr) return fallback + step * row;
    return is_wide ? static_cast<const int64_t*>(data)[row * stride] : static_cast<const int32_t*>(data)[row * stride];
  }
};

// The KV blocks of each row, int32 or int64; block `row` alone where the caller gave no table.
struct BlockTable {
  const void* data = nullptr;
  bool is_wide = false;
  int64_t row_stride = 0, stride = 0, num_columns = 1;
  int64_t block_size = 0;  // tokens of a block

  int64_t at(int64_t row, int64_t column) const {
    if (data == nullptr) return row;
    const int64_t index = row * row_stride + column * stride;
    return is_wide ? static_cast<const int64_t*>(data)[index] : static_cast<const int32_t*>(data)[index];
  }
};

// softmax(scale * q k^T) v over a paged cache; see decode_attention/reference.py.
template <typename T>
struct Attention {
  Heads<const T> query, new_key, new_value;  // new_key.data null: the new tokens are in the cache already
  Heads<T> key_cache, value_cache, output;
  RowIntegers cache_seqlens, num_new;
  BlockTable blocks;
  int64_t num_rows, num_tokens, num_heads, num_kv_heads, head_size;
  float scale;
};

// One value a row; the stride in elements.
template <typename T>
struct Column {
  T* data = nullptr;
  int64_t stride = 0;

  RELAY_ACCESS T& operator[](int64_t row) const { return data[row * stride]; }
};

// Rows of values, contiguous within a row.
template <typename T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;

  RELAY_ACCESS T* operator[](int64_t row) const { return data + row * stride; }
};

// normed = sum * rsqrt(mean(sum^2) + eps) * weight, sum = hidden + residual; see add_rms_norm/reference.py.
template <typename T>
struct AddRmsNorm {
  Rows<const T> hidden, residual;  // residual.data null: the sum is `hidden`, and not written
  Rows<T> normed, sum;
  const T* weight;
  int64_t size;
  float eps;
};

// Heads of queries and keys, normalised where there are weights, then rotated; see rotate_heads/reference.py.
template <typename T>
struct RotateHeads {
  Heads<const T> query, key;
  Heads<T> query_output, key_output;
  Heads<const T> cosine, sine;    // one head
  const T *query_norm, *key_norm;  // null: not normalised
  int64_t num_tokens, num_heads, num_kv_heads, head_size;
  float eps;
};

// silu(gate) * up; see silu_mul/reference.py.
template <typename T>
struct SiluMul {
  Rows<const T> gate, up;
  Rows<T> output;
  int64_t size;
};

struct Logits {
  enum Type { kFloat32, kBFloat16, kFloat16 } type = kFloat32;
  const void* data = nullptr;
  int64_t row_stride = 0, stride = 1, num_rows = 0, vocab_size = 0;
};

// relay_step/state.py: RowStatus. The writers' numbers are those of their rows' statuses.
enum Status : uint8_t {
  kStudent = 1,
  kTeacher = 2,
  kCalled = 3,
  kDelivered = 4,
  kTeacherEnded = 5,
  kStop = 6,
  kTeacherStop = 7,
  kLength = 8,
};

// relay_step/state.py: CommandRule
enum CommandRule : uint8_t { kCall = 0, kText = 1, kMaskClose = 2, kMaskOpen = 3 };

constexpr int64_t kMaxRequest = 999999999;  // relay_step/commands.py: MAX_REQUEST

// relay_step/commands.py: CommandTable; next_state null where there is none.
struct Commands {
  Rows<const uint8_t> next_state, is_complete, is_opening;
  Rows<const int16_t> narrow_action;
  Rows<const int32_t> wide_action;
  const int64_t* digit_scale = nullptr;
  const int64_t* digit_value = nullptr;
  int64_t num_states = 0, num_actions = 0;
};

// One step of the rows behind their logits; see relay_step/reference.py.
struct RelayStep {
  Logits logits;
  RowIntegers rows;  // the state's row of each row of logits
  Status writer = kStudent;
  Commands commands;
  Column<const int64_t> eos_token_ids;
  int64_t num_eos = 0;

  // relay_step/state.py: RelayStepState
  int64_t num_rows = 0, max_tokens = 0;
  Rows<int64_t> tokens;
  Rows<uint8_t> token_source;
  Rows<float> log_probs, sampling_log_probs;
  Column<int64_t> last_token, num_tokens;
  Column<uint8_t> status;
  Column<int64_t> command_state, command_n;
  Column<const int64_t> token_limit, span_limit;
  Column<const uint8_t> command_rule, ends_on_teacher_eos;
  Column<const float> temperature;
  Column<const int64_t> top_k;
  Column<const float> top_p, min_p;
  Column<const int64_t> seed, prompt_id, sample_index;
};

}  // namespace relay
