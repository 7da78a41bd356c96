// `add_rms_norm`, `rotate_heads` and `silu_mul` for Python. Each writes its outputs and returns true, or refuses its
// arguments and returns false, with nothing done.
#include <tvm/ffi/function.h>

#include <algorithm>
#include <cmath>

#include "arguments.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace relay {
namespace {

constexpr int64_t kValuesOfAThread = 1 << 15;
// Values below which another thread costs more than it takes over.

template <typename Op>
void run(const Op& op, void (*kernel)(const Op&, int64_t, int64_t), int64_t num_rows, int64_t row_size,
         int64_t num_threads) {
  if (row_size == 0) return;
  num_threads = limit_threads(num_threads, static_cast<double>(num_rows) * static_cast<double>(row_size) / kValuesOfAThread);
  const int64_t grain = std::max<int64_t>(1, num_rows / (4 * num_threads));
  parallel_for(num_rows, grain, num_threads, [&](int64_t begin, int64_t end, int64_t) { kernel(op, begin, end); });
}

// An epsilon under a square root.
bool is_epsilon(double eps) { return eps >= 0.0 && std::isfinite(eps); }

int64_t count_rows(const TensorView& tensor) {
  int64_t count = 1;
  for (int i = 0; i + 1 < tensor.ndim(); ++i) count *= tensor.size(i);
  return count;
}

template <typename T>
bool add_rms_norm_as(const TensorView& normed, const Optional<TensorView>& sum, const TensorView& hidden,
                     const Optional<TensorView>& residual, const TensorView& weight, double eps, int64_t num_threads,
                     void (*kernel)(const AddRmsNorm<T>&, int64_t, int64_t)) {
  AddRmsNorm<T> op{};
  const DLDataType dtype = hidden.dtype();
  if (!take_matrix(hidden, dtype, &op.hidden) || !take_matrix(normed, dtype, &op.normed)) return false;
  if (!has_shape_of(normed, hidden) || sum.has_value() != residual.has_value()) return false;
  op.size = hidden.size(hidden.ndim() - 1);
  op.eps = static_cast<float>(eps);
  if (!is_epsilon(eps) || !take_vector(weight, dtype, op.size, &op.weight)) return false;
  if (residual.has_value()) {
    if (!take_matrix(residual.value(), dtype, &op.residual) || !take_matrix(sum.value(), dtype, &op.sum)) return false;
    if (!has_shape_of(residual.value(), hidden) || !has_shape_of(sum.value(), hidden)) return false;
  }
  run(op, kernel, count_rows(hidden), op.size, num_threads);
  return true;
}

bool add_rms_norm(TensorView normed, Optional<TensorView> sum, TensorView hidden, Optional<TensorView> residual,
                  TensorView weight, double eps, int64_t num_threads) {
  if (has_type(hidden, kDLFloat, 32)) {
    return add_rms_norm_as<float>(normed, sum, hidden, residual, weight, eps, num_threads,
                                  cpu_kernels().add_rms_norm_float32);
  }
  if (has_type(hidden, kDLBfloat, 16)) {
    return add_rms_norm_as<BFloat16>(normed, sum, hidden, residual, weight, eps, num_threads,
                                     cpu_kernels().add_rms_norm_bfloat16);
  }
  return false;
}

// A [N, T, D] tensor as the only head of a [N, T, 1, D] one.
template <typename T>
bool take_angles(const TensorView& tensor, const TensorView& query, Heads<const T>* heads) {
  if (!is_on(tensor, kCpu) || tensor.ndim() != 3 || !has_type(tensor, query.dtype().code, query.dtype().bits)) {
    return false;
  }
  if (tensor.size(0) != query.size(0) || tensor.size(1) != query.size(1) || tensor.size(2) != query.size(3)) {
    return false;
  }
  if (tensor.size(2) > 1 && tensor.stride(2) != 1) return false;
  *heads = {static_cast<const T*>(tensor.data_ptr()), tensor.stride(0), tensor.stride(1), 0};
  return true;
}

template <typename T>
bool rotate_heads_as(const TensorView& query_output, const TensorView& key_output, const TensorView& query,
                     const TensorView& key, const TensorView& cosine, const TensorView& sine,
                     const Optional<TensorView>& query_norm, const Optional<TensorView>& key_norm, double eps,
                     int64_t num_threads, void (*kernel)(const RotateHeads<T>&, int64_t, int64_t)) {
  RotateHeads<T> op{};
  const DLDataType dtype = query.dtype();
  if (!take_heads(query, dtype, &op.query) || !take_heads(key, dtype, &op.key)) return false;
  if (!take_heads(query_output, dtype, &op.query_output) || !take_heads(key_output, dtype, &op.key_output)) return false;
  op.num_tokens = query.size(1);
  op.num_heads = query.size(2);
  op.num_kv_heads = key.size(2);
  op.head_size = query.size(3);
  op.eps = static_cast<float>(eps);
  if (op.head_size % 2 != 0 || !has_shape(key, query.size(0), op.num_tokens, op.num_kv_heads, op.head_size)) {
    return false;
  }
  if (!has_shape_of(query_output, query) || !has_shape_of(key_output, key)) return false;
  if (!take_angles(cosine, query, &op.cosine) || !take_angles(sine, query, &op.sine)) return false;
  if (!is_epsilon(eps) || query_norm.has_value() != key_norm.has_value()) return false;
  if (query_norm.has_value()) {
    if (!take_vector(query_norm.value(), dtype, op.head_size, &op.query_norm)) return false;
    if (!take_vector(key_norm.value(), dtype, op.head_size, &op.key_norm)) return false;
  }
  run(op, kernel, query.size(0) * op.num_tokens, (op.num_heads + op.num_kv_heads) * op.head_size, num_threads);
  return true;
}

bool rotate_heads(TensorView query_output, TensorView key_output, TensorView query, TensorView key, TensorView cosine,
                  TensorView sine, Optional<TensorView> query_norm, Optional<TensorView> key_norm, double eps,
                  int64_t num_threads) {
  if (has_type(query, kDLFloat, 32)) {
    return rotate_heads_as<float>(query_output, key_output, query, key, cosine, sine, query_norm, key_norm, eps,
                                  num_threads, cpu_kernels().rotate_heads_float32);
  }
  if (has_type(query, kDLBfloat, 16)) {
    return rotate_heads_as<BFloat16>(query_output, key_output, query, key, cosine, sine, query_norm, key_norm, eps,
                                     num_threads, cpu_kernels().rotate_heads_bfloat16);
  }
  return false;
}

template <typename T>
bool silu_mul_as(const TensorView& output, const TensorView& gate, const TensorView& up, int64_t num_threads,
                 void (*kernel)(const SiluMul<T>&, int64_t, int64_t)) {
  SiluMul<T> op{};
  const DLDataType dtype = gate.dtype();
  if (!take_matrix(gate, dtype, &op.gate) || !take_matrix(up, dtype, &op.up)) return false;
  if (!take_matrix(output, dtype, &op.output)) return false;
  if (!has_shape_of(up, gate) || !has_shape_of(output, gate)) return false;
  op.size = gate.size(gate.ndim() - 1);
  run(op, kernel, count_rows(gate), op.size, num_threads);
  return true;
}

bool silu_mul(TensorView output, TensorView gate, TensorView up, int64_t num_threads) {
  if (has_type(gate, kDLFloat, 32)) {
    return silu_mul_as<float>(output, gate, up, num_threads, cpu_kernels().silu_mul_float32);
  }
  if (has_type(gate, kDLBfloat, 16)) {
    return silu_mul_as<BFloat16>(output, gate, up, num_threads, cpu_kernels().silu_mul_bfloat16);
  }
  return false;
}

}  // namespace
}  // namespace relay

TVM_FFI_DLL_EXPORT_TYPED_FUNC(add_rms_norm, relay::add_rms_norm);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(rotate_heads, relay::rotate_heads);
TVM_FFI_DLL_EXPORT_TYPED_FUNC(silu_mul, relay::silu_mul);
