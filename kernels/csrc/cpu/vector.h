// Vectors as wide as the instruction set this file is compiled for, in GCC's and Clang's portable notation.
//
// Included only by the files that are compiled once per instruction set (kernels.cc), which therefore must not use
// anything of the standard library that the linker could merge across them.
#pragma once

#include <cstdint>

#include "../types.h"

namespace relay {
namespace RELAY_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

#define RELAY_INLINE inline __attribute__((always_inline))

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef double Doubles __attribute__((vector_size(kLanes * 8)));
typedef uint16_t HalfBits __attribute__((vector_size(kLanes * 2)));

RELAY_INLINE Vec broadcast(float value) { return Vec{} + value; }

RELAY_INLINE Vec load(const float* from) {
  Vec v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

RELAY_INLINE Vec load(const BFloat16* from) {
  HalfBits half;
  __builtin_memcpy(&half, from, sizeof half);
  return reinterpret_cast<Vec>(__builtin_convertvector(half, Bits) << 16);
}

RELAY_INLINE void store(float* to, Vec v) { __builtin_memcpy(to, &v, sizeof v); }

RELAY_INLINE float to_float(float value) { return value; }
RELAY_INLINE float to_float(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  __builtin_memcpy(&result, &bits, sizeof result);
  return result;
}

RELAY_INLINE float to_float(Float16 value) {
  // The exponent is shifted by a product with 2^112, which also makes subnormal numbers normal.
  const uint32_t magnitude = (value.bits & 0x7fffu) << 13;
  float shifted;
  __builtin_memcpy(&shifted, &magnitude, sizeof shifted);
  shifted *= 5192296858534827628530496329220096.0f;
  uint32_t bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  if (shifted >= 65536.0f) bits |= 0x7f800000u;  // infinities and NaN
  bits |= (value.bits & 0x8000u) << 16;
  __builtin_memcpy(&shifted, &bits, sizeof shifted);
  return shifted;
}

RELAY_INLINE void round_to(float value, float* to) { *to = value; }
RELAY_INLINE void round_to(float value, BFloat16* to) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  // Round to nearest, ties to even; NaN stays NaN.
  to->bits = value != value ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Each lane rounded as by `round_to`.
RELAY_INLINE void store(BFloat16* to, Vec v) {
  const Bits bits = reinterpret_cast<Bits>(v);
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const HalfBits half = __builtin_convertvector(v == v ? rounded : Bits{} + 0x7fc0, HalfBits);
  __builtin_memcpy(to, &half, sizeof half);
}

// The first `count` lanes, or all where there are no fewer; what is not there is 0 and not touched.
template <typename T>
RELAY_INLINE Vec load_part(const T* from, int64_t count) {
  if (count >= kLanes) return load(from);
  T part[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = from[i];
  return load(part);
}
template <typename T>
RELAY_INLINE void store_part(T* to, Vec v, int64_t count) {
  if (count >= kLanes) return store(to, v);
  T part[kLanes];
  store(part, v);
  for (int64_t i = 0; i < count; ++i) to[i] = part[i];
}

RELAY_INLINE Vec max(Vec a, Vec b) { return b > a ? b : a; }

RELAY_INLINE float max_lane(Vec v) {
  float best = v[0];
  for (int i = 1; i < kLanes; ++i) best = v[i] > best ? v[i] : best;
  return best;
}

RELAY_INLINE Doubles to_double(Vec v) { return __builtin_convertvector(v, Doubles); }

// The sum of the lanes in a fixed order, halves onto each other.
RELAY_INLINE double sum_lanes(Doubles v) {
  double lanes[kLanes];
  __builtin_memcpy(lanes, &v, sizeof v);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

RELAY_INLINE float sum_floats(Vec v) {
  float lanes[kLanes];
  __builtin_memcpy(lanes, &v, sizeof v);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// e^x of x <= 0, within 1 unit in the last place; exactly 0 below the smallest normal number, NaN stays NaN.
RELAY_INLINE Vec exp_nonpositive(Vec x) {
  constexpr float kLog2E = 1.44269504088896341f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  constexpr float kSmallest = -87.3365448f;
  const Vec shifted = x * kLog2E + kRound;
  const Vec n = shifted - kRound;
  const Vec r = (x - n * kLn2High) - n * kLn2Low;
  Vec p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Vec result = reinterpret_cast<Vec>(reinterpret_cast<Bits>(p) + (reinterpret_cast<Bits>(shifted) << 23));
  return x < kSmallest ? Vec{} : (x == x ? result : x);
}

}  // namespace RELAY_ISA
}  // namespace relay
