// One token of one row from its logits and a uniform number; see relay_step/sampling.py for the definition, whose
// roundings to fp32 are followed one by one, so that the same number draws the same token.
#pragma once

#include "../step_rules.h"
#include "vector.h"

namespace relay {
namespace RELAY_ISA {
namespace {

// A row's log-probabilities and its probabilities, zero where banned or cut; padded to whole vectors.
struct Distribution {
  float* log_probs;
  float* probs;
  int64_t size;
  bool is_number;  // false where the logits hold NaN or no finite value
};

template <typename T>
RELAY_INLINE void widen(const T* logits, int64_t stride, int64_t size, float temperature, float* scaled) {
  if (stride == 1 && temperature == 1.0f) {
    for (int64_t i = 0; i < size; ++i) scaled[i] = to_float(logits[i]);
  } else if (stride == 1) {
    for (int64_t i = 0; i < size; ++i) scaled[i] = to_float(logits[i]) / temperature;
  } else {
    for (int64_t i = 0; i < size; ++i) scaled[i] = to_float(logits[i * stride]) / temperature;
  }
}

inline float max_of(const float* values, int64_t size) {
  Vec lanes = broadcast(-__builtin_inff());
  for (int64_t i = 0; i < size; i += kLanes) lanes = max(lanes, load(values + i));
  return max_lane(lanes);
}

// log softmax of the row's logits over the temperature, into `log_probs`; whether they are numbers.
inline bool take_log_softmax(const Logits& logits, int64_t item, float temperature, float* log_probs) {
  const int64_t size = logits.vocab_size, offset = item * logits.row_stride;
  switch (logits.type) {
    case Logits::kFloat32:
      widen(static_cast<const float*>(logits.data) + offset, logits.stride, size, temperature, log_probs);
      break;
    case Logits::kBFloat16:
      widen(static_cast<const BFloat16*>(logits.data) + offset, logits.stride, size, temperature, log_probs);
      break;
    case Logits::kFloat16:
      widen(static_cast<const Float16*>(logits.data) + offset, logits.stride, size, temperature, log_probs);
      break;
  }
  for (int64_t i = size; i % kLanes; ++i) log_probs[i] = -__builtin_inff();
  const float best = max_of(log_probs, size);
  Doubles sums = {};
  for (int64_t i = 0; i < size; i += kLanes) sums += to_double(exp_nonpositive(load(log_probs + i) - best));
  const float total = static_cast<float>(sum_lanes(sums));
  const float log_total = __builtin_logf(total);
  for (int64_t i = 0; i < size; i += kLanes) store(log_probs + i, (load(log_probs + i) - best) - log_total);
  return total == total;
}

// The log-probabilities of the tokens that are not banned, -inf for the others, into `probs`; returns the largest.
inline float allow(const Distribution& row, const Banned& banned) {
  for (int64_t i = 0; i < row.size; ++i) row.probs[i] = banned[i] ? -__builtin_inff() : row.log_probs[i];
  for (int64_t i = row.size; i % kLanes; ++i) row.probs[i] = -__builtin_inff();
  return max_of(row.probs, row.size);
}

// The first of the most probable tokens that are not banned, the first token if none can be drawn. Where nothing is a
// number, the first not banned.
inline int64_t find_best(const Distribution& row, const Banned& banned) {
  const float best = banned.has_any() ? allow(row, banned) : max_of(row.log_probs, row.size);
  const float* values = banned.has_any() ? row.probs : row.log_probs;
  for (int64_t i = 0; i < row.size; ++i) {
    if (row.is_number ? values[i] == best : values[i] != values[i]) return i;
  }
  return 0;
}

RELAY_INLINE float from_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

RELAY_INLINE uint32_t to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

// How much is more probable than a threshold, and the probabilities next to it.
struct Above {
  double amount;
  float next_above, last_below;  // the least above it (infinite if none) and the greatest not above it (0 if none)
};

// kMass: the amount is the sum of the probabilities; else their number.
template <bool kMass>
inline Above measure_above(const float* probs, int64_t size, float threshold) {
  Doubles mass = {};
  Bits count = {};
  Vec next = broadcast(__builtin_inff()), last = {};
  for (int64_t i = 0; i < size; i += kLanes) {
    const Vec prob = load(probs + i);
    const auto is_above = prob > threshold;
    if (kMass) {
      mass += to_double(is_above ? prob : Vec{});
    } else {
      count -= reinterpret_cast<Bits>(is_above);
    }
    const Vec above = is_above ? prob : broadcast(__builtin_inff());
    next = above < next ? above : next;
    last = max(last, is_above ? Vec{} : prob);
  }
  double amount = kMass ? sum_lanes(mass) : 0.0;
  for (int i = 0; i < kLanes && !kMass; ++i) amount += count[i];
  return {amount, -max_lane(-next), max_lane(last)};
}

// The least threshold above which lies less than `limit`, `best` at most: exact, without sorting. Non-negative floats
// have the order of their bits; the bisection runs over those and steps from one probability that occurs to the next.
template <bool kMass>
inline float find_threshold(const float* probs, int64_t size, float best, float limit) {
  int64_t low = -1, high = to_bits(best);  // too much lies above low, not so above high
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    const Above above = measure_above<kMass>(probs, size, from_bits(static_cast<uint32_t>(middle)));
    if (static_cast<float>(above.amount) < limit) {
      high = to_bits(above.last_below);
    } else {
      const int64_t next = to_bits(above.next_above);
      low = next - 1 < high ? next - 1 : high - 1;
    }
  }
  return from_bits(static_cast<uint32_t>(high));
}

RELAY_INLINE void cut_below(float* probs, int64_t size, float least) {
  for (int64_t i = 0; i < size; i += kLanes) {
    const Vec prob = load(probs + i);
    store(probs + i, prob >= least ? prob : Vec{});
  }
}

// Sets to zero what top-k, then top-p, then min-p cut away.
inline void keep_most_probable(float* probs, int64_t size, int64_t top_k, float top_p, float min_p) {
  const float best = max_of(probs, size);
  if (top_k > 0 && top_k < size) {
    cut_below(probs, size, find_threshold<false>(probs, size, best, static_cast<float>(top_k)));
  }
  float least = 0.0f;
  if (top_p < 1.0f) {
    const auto mass = static_cast<float>(measure_above<true>(probs, size, 0.0f).amount);
    least = find_threshold<true>(probs, size, best, top_p * mass);
  }
  const float floor = min_p * best;
  if (floor > least) least = floor;
  cut_below(probs, size, least < best ? least : best);
}

// The first token whose cumulative probability exceeds uniform * total; the last one where nothing is a number.
inline int64_t draw(const float* probs, int64_t size, float uniform, float* total) {
  Doubles sums = {};
  for (int64_t i = 0; i < size; i += kLanes) sums += to_double(load(probs + i));
  *total = static_cast<float>(sum_lanes(sums));
  const float target = uniform * *total;
  double before = 0.0;
  int64_t last = size - 1;
  for (int64_t i = 0; i < size; i += kLanes) {
    const double after = before + sum_lanes(to_double(load(probs + i)));
    if (static_cast<float>(after) > target) {
      double sum = before;
      for (int64_t j = i; j < i + kLanes && j < size; ++j) {
        sum += probs[j];
        if (probs[j] > 0.0f) {
          last = j;
          if (static_cast<float>(sum) > target) return j;
        }
      }
    }
    before = after;
  }
  return last;
}

// The probabilities of the tokens that are not banned, into `probs`, over e^shift: relative to the best of them where any
// is banned, for those may hold all but nothing of the probability. Returns the shift.
inline float take_probs(const Distribution& row, const Banned& banned) {
  float* probs = row.probs;
  if (!banned.has_any()) {
    for (int64_t i = 0; i < row.size; i += kLanes) store(probs + i, exp_nonpositive(load(row.log_probs + i)));
    return 0.0f;
  }
  const float best = allow(row, banned);
  const float shift = best == -__builtin_inff() ? 0.0f : best;
  for (int64_t i = 0; i < row.size; i += kLanes) store(probs + i, exp_nonpositive(load(probs + i) - shift));
  return shift;
}

// scratch: two rows of whole vectors.
inline Sample sample(const Logits& logits, int64_t item, const Sampling& sampling, float uniform,
                     const Banned& banned, float* scratch) {
  const int64_t size = logits.vocab_size, padded = (size + kLanes - 1) / kLanes * kLanes;
  Distribution d{scratch, scratch + padded, size, true};
  const bool is_greedy = sampling.temperature == 0.0f;
  d.is_number = take_log_softmax(logits, item, is_greedy ? 1.0f : sampling.temperature, d.log_probs);
  if (is_greedy) {
    const int64_t token = find_best(d, banned);
    return {token, d.log_probs[token], 0.0f};
  }
  if (!d.is_number) return {size - 1, d.log_probs[size - 1], d.log_probs[size - 1]};
  const float shift = take_probs(d, banned);
  if (sampling.is_cut()) keep_most_probable(d.probs, size, sampling.top_k, sampling.top_p, sampling.min_p);
  float total = 1.0f;
  const int64_t token = draw(d.probs, size, uniform, &total);
  const float log_prob = d.log_probs[token];
  const bool is_whole = !banned.has_any() && !sampling.is_cut();
  return {token, log_prob, is_whole ? log_prob : (log_prob - shift) - __builtin_logf(total)};
}

}  // namespace
}  // namespace RELAY_ISA
}  // namespace relay
