// The pointwise ops of a decoder block: the norm behind a residual sum, rotary positions, the gate of the MLP.
#pragma once

#include "vector.h"

namespace relay {
namespace RELAY_ISA {
namespace {

RELAY_INLINE float inverse_rms(Vec squares, int64_t size, float eps) {
  return 1.0f / __builtin_sqrtf(sum_floats(squares) / static_cast<float>(size) + eps);
}

template <typename T>
void add_rms_norm(const AddRmsNorm<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* states = a.hidden[row];
    Vec squares = {};
    for (int64_t d = 0; d < a.size; d += kLanes) {
      Vec sum = load_part(states + d, a.size - d);
      if (a.residual.data != nullptr) {
        store_part(a.sum[row] + d, sum + load_part(a.residual[row] + d, a.size - d), a.size - d);
        sum = load_part(a.sum[row] + d, a.size - d);  // as rounded
      }
      squares += sum * sum;
    }
    if (a.residual.data != nullptr) states = a.sum[row];
    const float scale = inverse_rms(squares, a.size, a.eps);
    for (int64_t d = 0; d < a.size; d += kLanes) {
      const Vec normed = load_part(states + d, a.size - d) * scale * load_part(a.weight + d, a.size - d);
      store_part(a.normed[row] + d, normed, a.size - d);
    }
  }
}

// One head; `weight` null: not normalised.
template <typename T>
RELAY_INLINE void rotate_head(const T* from, T* to, const T* cosine, const T* sine, const T* weight, int64_t half,
                              float eps) {
  float scale = 1.0f;
  if (weight != nullptr) {
    Vec squares = {};
    for (int64_t d = 0; d < 2 * half; d += kLanes) {
      const Vec v = load_part(from + d, 2 * half - d);
      squares += v * v;
    }
    scale = inverse_rms(squares, 2 * half, eps);
  }
  for (int64_t d = 0; d < half; d += kLanes) {
    const int64_t left = half - d, second = half + d;
    Vec a = load_part(from + d, left), b = load_part(from + second, left);
    if (weight != nullptr) {
      a = a * scale * load_part(weight + d, left);
      b = b * scale * load_part(weight + second, left);
    }
    store_part(to + d, a * load_part(cosine + d, left) - b * load_part(sine + d, left), left);
    store_part(to + second, b * load_part(cosine + second, left) + a * load_part(sine + second, left), left);
  }
}

template <typename T>
void rotate_heads(const RotateHeads<T>& a, int64_t begin, int64_t end) {
  const int64_t half = a.head_size / 2;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = i / a.num_tokens, token = i % a.num_tokens;
    const T *cosine = a.cosine.at(row, token, 0), *sine = a.sine.at(row, token, 0);
    for (int64_t head = 0; head < a.num_heads; ++head) {
      rotate_head(a.query.at(row, token, head), a.query_output.at(row, token, head), cosine, sine, a.query_norm, half,
                  a.eps);
    }
    for (int64_t head = 0; head < a.num_kv_heads; ++head) {
      rotate_head(a.key.at(row, token, head), a.key_output.at(row, token, head), cosine, sine, a.key_norm, half, a.eps);
    }
  }
}

template <typename T>
void silu_mul(const SiluMul<T>& a, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t d = 0; d < a.size; d += kLanes) {
      const Vec gate = load_part(a.gate[row] + d, a.size - d), up = load_part(a.up[row] + d, a.size - d);
      // e^-|x| never overflows; the logistic function is 1 / (1 + e) on the right of 0 and e / (1 + e) on the left.
      const Vec e = exp_nonpositive(gate > 0.0f ? -gate : gate);
      const Vec logistic = (gate > 0.0f ? broadcast(1.0f) : e) / (1.0f + e);
      store_part(a.output[row] + d, gate * logistic * up, a.size - d);
    }
  }
}

}  // namespace
}  // namespace RELAY_ISA
}  // namespace relay
