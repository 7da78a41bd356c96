// One block a row. The row is read a few times, after the first time out of L2: the log-sum-exp; where the row is cut,
// three digits of the threshold for each of top-k and top-p; the probabilities of the pieces; the piece of the draw.
//
// Probabilities are summed as integers, multiples of 2^-40: the same sum in whatever order the threads arrive.
#define RELAY_ISA cuda_device

#include "relay_step.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../step_rules.h"

namespace relay {
namespace RELAY_ISA {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kOctet = 8, kPiece = 32 * kOctet;  // entries a thread and a warp read at a time
constexpr int kDigitBits = 11, kBins = 1 << kDigitBits;
constexpr float kOne = 1099511627776.0f;  // 2^40, the weight of probability 1
using Weight = unsigned long long;

struct Shared {
  float values[kWarps];
  int64_t indices[kWarps];
  Weight weights[kWarps];
  Weight bins[kBins];
  Weight found[2];
  StepRow row;
  bool is_stepped;
  Weight pieces[1];  // as many as the row has
};

// --- What the block agrees on. Every thread calls these and gets the result. ---

__device__ float reduce_max(Shared& shared, float value) {
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
  if (threadIdx.x % 32 == 0) shared.values[threadIdx.x / 32] = value;
  __syncthreads();
  value = shared.values[threadIdx.x % kWarps];
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
  __syncthreads();
  return value;
}

__device__ float reduce_sum(Shared& shared, float value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  if (threadIdx.x % 32 == 0) shared.values[threadIdx.x / 32] = value;
  __syncthreads();
  value = shared.values[threadIdx.x % kWarps];
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  __syncthreads();
  return value;
}

__device__ int64_t reduce_min(Shared& shared, int64_t index) {
  for (int step = 16; step > 0; step /= 2) index = min(index, __shfl_xor_sync(~0u, index, step));
  if (threadIdx.x % 32 == 0) shared.indices[threadIdx.x / 32] = index;
  __syncthreads();
  index = shared.indices[threadIdx.x % kWarps];
  for (int step = 16; step > 0; step /= 2) index = min(index, __shfl_xor_sync(~0u, index, step));
  __syncthreads();
  return index;
}

// The sum over the threads before this one; `total` over all.
__device__ Weight scan(Shared& shared, Weight weight, Weight* total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Weight sum = weight;
  for (int step = 1; step < 32; step *= 2) {
    const Weight other = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == 31) shared.weights[warp] = sum;
  __syncthreads();
  Weight before = 0, all = 0;
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += shared.weights[w];
    all += shared.weights[w];
  }
  __syncthreads();
  *total = all;
  return before + sum - weight;
}

// --- A row's probabilities. ---

__device__ float widen(float value) { return value; }
__device__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ float widen(__half value) { return __half2float(value); }

template <typename L>
struct Row {
  const L* logits;
  int64_t stride, size;
  float temperature;
  Banned banned;
  float best = 0.0f, log_total = 0.0f;
  float shift = 0.0f;  // log-probability of the best token that is left where any is banned: what `prob` is relative to

  __device__ bool is_banned(int64_t token) const { return banned.has_any() && banned[token]; }

  // Logits over the temperature of the octet at `first`; -inf behind the end, and where banned if asked for.
  __device__ void load(int64_t first, bool is_masked, float (&scaled)[kOctet]) const {
    if (stride == 1 && first + kOctet <= size && reinterpret_cast<uintptr_t>(logits + first) % 16 == 0) {
      alignas(16) L raw[kOctet];
      for (int i = 0; i < static_cast<int>(sizeof raw / 16); ++i) {
        reinterpret_cast<uint4*>(raw)[i] = reinterpret_cast<const uint4*>(logits + first)[i];
      }
      for (int i = 0; i < kOctet; ++i) scaled[i] = widen(raw[i]) / temperature;
    } else {
      for (int i = 0; i < kOctet; ++i) {
        scaled[i] = first + i < size ? widen(logits[(first + i) * stride]) / temperature : -INFINITY;
      }
    }
    if (!is_masked || !banned.has_any()) return;
    for (int i = 0; i < kOctet; ++i) {
      if (first + i < size && is_banned(first + i)) scaled[i] = -INFINITY;
    }
  }

  __device__ float log_prob(float scaled) const { return (scaled - best) - log_total; }

  // The probability over e^shift.
  __device__ float prob(float scaled) const { return expf(log_prob(scaled) - shift); }

  __device__ float log_prob_of(int64_t token) const { return log_prob(widen(logits[token * stride]) / temperature); }

  __device__ int64_t num_pieces() const { return (size + kPiece - 1) / kPiece; }

  // body(first, scaled) for every octet of this thread: a warp takes a piece at a time.
  template <typename Body>
  __device__ void for_each_octet(bool is_masked, const Body& body) const {
    const int end = static_cast<int>(num_pieces());  // 32 bits, for registers: kMaxCudaVocabulary is no larger
    for (int piece = threadIdx.x / 32; piece < end; piece += kWarps) {
      const int64_t first = piece * kPiece + threadIdx.x % 32 * kOctet;
      float scaled[kOctet];
      load(first, is_masked, scaled);
      body(first, scaled);
    }
  }
};

__device__ Weight weigh(float prob) { return __float2ull_rn(prob * kOne); }

// Finds the row's best logit and log-sum-exp; false where they are no numbers.
template <typename L>
__device__ bool take_log_softmax(Shared& shared, Row<L>& row) {
  float best = -INFINITY, sum = 0.0f;
  row.for_each_octet(false, [&](int64_t, const float (&scaled)[kOctet]) {
    float octet_best = best;
    for (int i = 0; i < kOctet; ++i) octet_best = fmaxf(octet_best, scaled[i]);
    if (octet_best > best) sum *= expf(best - octet_best);
    best = octet_best;
    for (int i = 0; i < kOctet; ++i) sum += scaled[i] == -INFINITY ? 0.0f : expf(scaled[i] - best);
  });
  row.best = reduce_max(shared, best);
  const float total = reduce_sum(shared, best == -INFINITY && sum == 0.0f ? 0.0f : sum * expf(best - row.best));
  row.log_total = logf(total);
  return total > 0.0f && total < INFINITY;
}

// Sets what the row's probabilities are relative to: where any token is banned, the best that is left, for what is banned
// may hold all but nothing of the probability.
template <typename L>
__device__ void take_shift(Shared& shared, Row<L>& row) {
  if (!row.banned.has_any()) return;
  float best = -INFINITY;
  row.for_each_octet(true, [&](int64_t, const float (&scaled)[kOctet]) {
    for (int i = 0; i < kOctet; ++i) best = fmaxf(best, row.log_prob(scaled[i]));
  });
  best = reduce_max(shared, best);
  row.shift = best == -INFINITY ? 0.0f : best;
}

// The first of the most probable tokens that are not banned, 0 if none can be drawn; the first NaN if there is one.
template <typename L>
__device__ int64_t find_best(Shared& shared, const Row<L>& row) {
  const auto rank = [&](float scaled) {
    const float log_prob = row.log_prob(scaled);
    return log_prob != log_prob ? INFINITY : log_prob;
  };
  float best = -INFINITY;
  row.for_each_octet(true, [&](int64_t first, const float (&scaled)[kOctet]) {
    for (int i = 0; i < kOctet; ++i) {
      if (first + i < row.size && !row.is_banned(first + i)) best = fmaxf(best, rank(scaled[i]));
    }
  });
  best = reduce_max(shared, best);
  int64_t token = row.size;
  row.for_each_octet(true, [&](int64_t first, const float (&scaled)[kOctet]) {
    for (int i = kOctet - 1; i >= 0; --i) {
      const bool is_open = first + i < row.size && !row.is_banned(first + i);
      if (is_open && rank(scaled[i]) == best) token = min(token, first + i);
    }
  });
  token = reduce_min(shared, token);
  return token == row.size ? 0 : token;
}

// The bits of the least probability above which lies less than `limit` (a number of tokens, or a weight), of those with
// at least the bits `floor`: a radix selection, three digits of 11, 11 and 10 bits. Exact.
template <bool kMass, typename L>
__device__ uint32_t find_threshold(Shared& shared, const Row<L>& row, uint32_t floor, Weight limit) {
  uint32_t prefix = 0;
  Weight above = 0;  // amount in bins above the prefix
  int shift = 32;
  for (int digit = 0; digit < 3; ++digit) {
    const int bits = digit < 2 ? kDigitBits : 32 - 2 * kDigitBits;
    const int prefix_shift = shift;
    shift -= bits;
    for (int i = threadIdx.x; i < kBins; i += kThreads) shared.bins[i] = 0;
    __syncthreads();
    row.for_each_octet(true, [&](int64_t first, const float (&scaled)[kOctet]) {
      for (int i = 0; i < kOctet; ++i) {
        const float prob = row.prob(scaled[i]);
        const uint32_t key = __float_as_uint(prob);
        const bool is_inside = digit == 0 || key >> prefix_shift == prefix;
        if (first + i >= row.size || prob <= 0.0f || key < floor || !is_inside) continue;
        atomicAdd(&shared.bins[(key >> shift) & ((1u << bits) - 1)], kMass ? weigh(prob) : Weight{1});
      }
    });
    __syncthreads();
    // Two bins a thread, from the top: the bin at which the amount reaches the limit.
    const int top = kBins - 1 - 2 * static_cast<int>(threadIdx.x);
    const Weight first = shared.bins[top], second = shared.bins[top - 1];
    Weight total;
    const Weight before = above + scan(shared, first + second, &total);
    if (above + total < limit) return 0;  // the same for all threads
    if (before < limit && before + first + second >= limit) {
      const bool is_first = before + first >= limit;
      shared.found[0] = is_first ? top : top - 1;
      shared.found[1] = is_first ? before : before + first;
    }
    __syncthreads();
    prefix = prefix << bits | static_cast<uint32_t>(shared.found[0]);
    above = shared.found[1];
    __syncthreads();
  }
  return prefix;
}

// The bits below which top-k, then top-p, then min-p cut a probability away.
template <typename L>
__device__ uint32_t find_cut(Shared& shared, const Row<L>& row, const Sampling& sampling) {
  float best = 0.0f;
  row.for_each_octet(true, [&](int64_t, const float (&scaled)[kOctet]) {
    for (int i = 0; i < kOctet; ++i) best = fmaxf(best, row.prob(scaled[i]));
  });
  best = reduce_max(shared, best);
  uint32_t cut = 0;
  if (sampling.top_k > 0) cut = find_threshold<false>(shared, row, 0, sampling.top_k);
  if (sampling.top_p < 1.0f) {
    Weight mass = 0, total;
    row.for_each_octet(true, [&](int64_t, const float (&scaled)[kOctet]) {
      for (int i = 0; i < kOctet; ++i) {
        const float prob = row.prob(scaled[i]);
        if (__float_as_uint(prob) >= cut) mass += weigh(prob);
      }
    });
    scan(shared, mass, &total);
    const auto limit = static_cast<Weight>(ceil(static_cast<double>(sampling.top_p) * static_cast<double>(total)));
    const uint32_t nucleus = find_threshold<true>(shared, row, cut, limit > 0 ? limit : 1);
    cut = max(cut, nucleus);
  }
  cut = max(cut, __float_as_uint(fmaxf(sampling.min_p * best, 0.0f)));
  return min(cut, __float_as_uint(best));
}

// The first token whose cumulative weight exceeds uniform * total; the last one where there is no weight.
template <typename L>
__device__ int64_t draw(Shared& shared, const Row<L>& row, uint32_t cut, float uniform, Weight* total) {
  const auto weight_of = [&](int64_t index, float scaled) -> Weight {
    const float prob = row.prob(scaled);
    return index < row.size && __float_as_uint(prob) >= cut ? weigh(prob) : 0;
  };
  row.for_each_octet(true, [&](int64_t first, const float (&scaled)[kOctet]) {
    Weight sum = 0;
    for (int i = 0; i < kOctet; ++i) sum += weight_of(first + i, scaled[i]);
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    if (threadIdx.x % 32 == 0) shared.pieces[first / kPiece] = sum;
  });
  __syncthreads();
  // Each thread a run of pieces, in order.
  const int64_t num_pieces = row.num_pieces(), run = (num_pieces + kThreads - 1) / kThreads;
  const int64_t begin = min(threadIdx.x * run, num_pieces), end = min(begin + run, num_pieces);
  Weight sum = 0;
  for (int64_t piece = begin; piece < end; ++piece) sum += shared.pieces[piece];
  Weight before = scan(shared, sum, total);
  const auto target = static_cast<Weight>(static_cast<double>(uniform) * static_cast<double>(*total));
  if (threadIdx.x == 0) shared.found[0] = row.size;
  __syncthreads();
  if (before <= target && target < before + sum) {
    for (int64_t piece = begin; piece < end; before += shared.pieces[piece++]) {
      if (target >= before + shared.pieces[piece]) continue;
      for (int64_t index = piece * kPiece;; ++index) {  // ends: the piece's weights reach beyond the target
        float scaled = widen(row.logits[index * row.stride]) / row.temperature;
        if (row.is_banned(index)) scaled = -INFINITY;
        const Weight weight = weight_of(index, scaled);
        if (target < before + weight) {
          shared.found[0] = index;
          break;
        }
        before += weight;
      }
      break;
    }
  }
  __syncthreads();
  return min(static_cast<int64_t>(shared.found[0]), row.size - 1);
}

template <typename L>
__global__ void __launch_bounds__(kThreads) step_kernel(const RelayStep step) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int64_t item = blockIdx.x;
  // One thread reads the row for all: were another block at work on the same row, they would not all read the same.
  if (threadIdx.x == 0) shared.is_stepped = take_row(step, item, &shared.row);
  __syncthreads();
  if (!shared.is_stepped) return;
  const StepRow mine = shared.row;
  const Sampling sampling = take_sampling(step, mine);
  const bool is_greedy = sampling.temperature == 0.0f;
  Row<L> row{static_cast<const L*>(step.logits.data) + item * step.logits.row_stride, step.logits.stride,
             step.logits.vocab_size, is_greedy ? 1.0f : sampling.temperature, find_banned(step, mine)};
  const bool is_number = take_log_softmax(shared, row);
  Sample sampled{};
  if (is_greedy) {
    sampled.token = find_best(shared, row);
    sampled.log_prob = row.log_prob_of(sampled.token);
  } else if (!is_number) {
    sampled = {row.size - 1, NAN, NAN};
  } else {
    take_shift(shared, row);
    const uint32_t cut = sampling.is_cut() ? find_cut(shared, row, sampling) : 0;
    Weight total = 0;
    sampled.token = draw(shared, row, cut, take_uniform(step, mine), &total);
    sampled.log_prob = row.log_prob_of(sampled.token);
    const bool is_whole = !row.banned.has_any() && !sampling.is_cut();
    const float kept = static_cast<float>(static_cast<double>(total) / kOne);
    sampled.sampling_log_prob = is_whole ? sampled.log_prob : (sampled.log_prob - row.shift) - logf(kept);
  }
  if (threadIdx.x == 0) finish_row(step, mine, sampled);
}

template <typename L>
cudaError_t launch(const RelayStep& step, cudaStream_t stream) {
  const int64_t num_pieces = (step.logits.vocab_size + kPiece - 1) / kPiece;
  const size_t shared_size = sizeof(Shared) + static_cast<size_t>(num_pieces) * sizeof(Weight);
  const cudaError_t error = cudaFuncSetAttribute(step_kernel<L>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 static_cast<int>(shared_size));
  if (error != cudaSuccess) return error;
  step_kernel<L><<<static_cast<unsigned>(step.logits.num_rows), kThreads, shared_size, stream>>>(step);
  return cudaGetLastError();
}

}  // namespace
}  // namespace RELAY_ISA

cudaError_t launch_relay_step(const RelayStep& step, cudaStream_t stream) {
  if (step.logits.num_rows == 0) return cudaSuccess;
  if (step.logits.vocab_size > kMaxCudaVocabulary) return cudaErrorInvalidValue;
  switch (step.logits.type) {
    case Logits::kFloat32: return RELAY_ISA::launch<float>(step, stream);
    case Logits::kBFloat16: return RELAY_ISA::launch<__nv_bfloat16>(step, stream);
    default: return RELAY_ISA::launch<__half>(step, stream);
  }
}

}  // namespace relay
