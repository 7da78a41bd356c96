// Tensors from Python as the kernels' records. A tensor that does not fit makes the whole call "refused": the Python
// side then finds and names the argument at fault, so that each sentence is written once.
#pragma once

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/optional.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "types.h"

namespace relay {

using tvm::ffi::Optional;
using tvm::ffi::TensorView;

constexpr DLDevice kCpu = {kDLCPU, 0};

inline bool is_on(const TensorView& tensor, DLDevice device) {
  return tensor.device().device_type == device.device_type && tensor.device().device_id == device.device_id;
}

inline bool has_type(const TensorView& tensor, int code, int bits) {
  return tensor.dtype().code == code && tensor.dtype().bits == bits && tensor.dtype().lanes == 1;
}

// `count` integers of the rows, int32 or int64, into `rows`; false if the tensor is anything else.
inline bool take_integers(const TensorView& tensor, DLDevice device, int64_t count, RowIntegers* rows) {
  const bool is_wide = has_type(tensor, kDLInt, 64);
  if (!is_on(tensor, device) || tensor.ndim() != 1 || tensor.size(0) != count) return false;
  if (!is_wide && !has_type(tensor, kDLInt, 32)) return false;
  rows->data = tensor.data_ptr();
  rows->is_wide = is_wide;
  rows->stride = count > 1 ? tensor.stride(0) : 1;
  return true;
}

// Whether no integer of `values` occurs twice, which it sorts; ascending ones are compared in place.
inline bool are_distinct(std::vector<int64_t>* values) {
  if (!std::is_sorted(values->begin(), values->end())) std::sort(values->begin(), values->end());
  return std::adjacent_find(values->begin(), values->end()) == values->end();
}

// Whether no integer of the rows occurs twice. Slots in ascending order, as decode steps have them, are compared in place.
inline bool are_distinct(const RowIntegers& rows, int64_t count) {
  if (rows.data == nullptr) return true;
  int64_t row = 1;
  while (row < count && rows[row - 1] < rows[row]) ++row;
  if (row >= count) return true;
  std::vector<int64_t> sorted(static_cast<size_t>(count));
  for (row = 0; row < count; ++row) sorted[static_cast<size_t>(row)] = rows[row];
  return are_distinct(&sorted);
}

inline bool is_empty(const TensorView& tensor) {
  for (int i = 0; i < tensor.ndim(); ++i) {
    if (tensor.size(i) == 0) return true;
  }
  return false;
}

// Whether several elements share one address, as after `expand` or in windows that overlap: such a tensor is not written
// to. Every dimension must step over all that those of smaller strides span.
inline bool has_shared_elements(const TensorView& tensor) {
  constexpr int kMostDimensions = 8;
  if (is_empty(tensor)) return false;
  if (tensor.ndim() > kMostDimensions) return true;
  std::array<int, kMostDimensions> order{};
  int count = 0;
  for (int i = 0; i < tensor.ndim(); ++i) {
    if (tensor.size(i) > 1) order[count++] = i;
  }
  std::sort(order.begin(), order.begin() + count, [&](int a, int b) { return tensor.stride(a) < tensor.stride(b); });
  int64_t span = 1;
  for (int i = 0; i < count; ++i) {
    if (tensor.stride(order[i]) < span) return true;
    span += (tensor.size(order[i]) - 1) * tensor.stride(order[i]);
  }
  return false;
}

// A [rows, at least 1] table of int32 or int64 into `table`; false if the tensor is anything else.
inline bool take_table(const TensorView& tensor, DLDevice device, int64_t num_rows, BlockTable* table) {
  const bool is_wide = has_type(tensor, kDLInt, 64);
  if (!is_on(tensor, device) || tensor.ndim() != 2 || tensor.size(0) != num_rows || tensor.size(1) == 0) return false;
  if (!is_wide && !has_type(tensor, kDLInt, 32)) return false;
  table->data = tensor.data_ptr();
  table->is_wide = is_wide;
  table->row_stride = num_rows > 1 ? tensor.stride(0) : 0;
  table->stride = tensor.size(1) > 1 ? tensor.stride(1) : 0;
  table->num_columns = tensor.size(1);
  return true;
}

// A [., ., heads, D] tensor of the given type on the CPU, contiguous along D, into `heads`.
template <typename T>
bool take_heads(const TensorView& tensor, DLDataType dtype, Heads<T>* heads) {
  if (!is_on(tensor, kCpu) || tensor.ndim() != 4 || !has_type(tensor, dtype.code, dtype.bits)) return false;
  if (tensor.size(3) > 1 && tensor.stride(3) != 1) return false;
  *heads = {static_cast<T*>(tensor.data_ptr()), tensor.stride(0), tensor.stride(1), tensor.stride(2)};
  return true;
}

// A tensor of the given type on the CPU whose rows are contiguous and equally far apart, into `rows`.
template <typename T>
bool take_matrix(const TensorView& tensor, DLDataType dtype, Rows<T>* rows) {
  if (!is_on(tensor, kCpu) || tensor.ndim() == 0 || !has_type(tensor, dtype.code, dtype.bits)) return false;
  const int last = tensor.ndim() - 1;
  *rows = {static_cast<T*>(tensor.data_ptr()), 0};
  if (is_empty(tensor)) return true;  // Whatever its strides are.
  if (tensor.size(last) > 1 && tensor.stride(last) != 1) return false;
  bool is_first = true;
  int64_t next = 0;
  for (int i = last - 1; i >= 0; --i) {
    if (tensor.size(i) == 1) continue;
    if (is_first) rows->stride = tensor.stride(i);
    if (!is_first && tensor.stride(i) != next) return false;
    is_first = false;
    next = tensor.stride(i) * tensor.size(i);
  }
  return true;
}

// `count` contiguous values of the given type on the CPU, into `values`.
template <typename T>
bool take_vector(const TensorView& tensor, DLDataType dtype, int64_t count, const T** values) {
  if (!is_on(tensor, kCpu) || tensor.ndim() != 1 || tensor.size(0) != count) return false;
  if (!has_type(tensor, dtype.code, dtype.bits) || (count > 1 && tensor.stride(0) != 1)) return false;
  *values = static_cast<const T*>(tensor.data_ptr());
  return true;
}

inline bool has_shape_of(const TensorView& tensor, const TensorView& other) {
  if (tensor.ndim() != other.ndim()) return false;
  for (int i = 0; i < tensor.ndim(); ++i) {
    if (tensor.size(i) != other.size(i)) return false;
  }
  return true;
}

inline bool has_shape(const TensorView& tensor, int64_t a, int64_t b, int64_t c, int64_t d) {
  return tensor.size(0) == a && tensor.size(1) == b && tensor.size(2) == c && tensor.size(3) == d;
}

}  // namespace relay
