// `relay_step` for Python.
#include <tvm/ffi/any.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <type_traits>

#include "arguments.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#ifdef RELAY_HAS_CUDA
#include <tvm/ffi/extra/c_env_api.h>

#include "cuda/relay_step.h"
#endif

namespace relay {
namespace {

using tvm::ffi::AnyView;

constexpr int64_t kLogitsOfAThread = 1 << 15;
// Logits a thread is worth waking for: about 50 us of them.
constexpr double kMaxTopK = 2147483647.0;  // relay_step/checks.py: MAX_TOP_K
constexpr int64_t kMostLogits = int64_t{1} << 40;
// More of one row than any memory holds; the size of the scratch does not overflow below.

template <typename T>
constexpr int kCode = std::is_floating_point_v<T> ? kDLFloat : std::is_signed_v<T> ? kDLInt : kDLUInt;

template <typename T>
bool is_of(const TensorView& tensor, DLDevice device) {
  using Value = std::remove_const_t<T>;
  const bool is_bool = std::is_same_v<Value, uint8_t> && has_type(tensor, kDLBool, 8);
  return is_on(tensor, device) && (is_bool || has_type(tensor, kCode<Value>, 8 * sizeof(Value)));
}

template <typename T>
bool take_column(const TensorView& tensor, DLDevice device, int64_t count, Column<T>* column) {
  if (!is_of<T>(tensor, device) || tensor.ndim() != 1 || tensor.size(0) != count) return false;
  if (!std::is_const_v<T> && has_shared_elements(tensor)) return false;
  *column = {static_cast<T*>(tensor.data_ptr()), tensor.stride(0)};
  return true;
}

template <typename T>
bool take_table(const TensorView& tensor, DLDevice device, int64_t num_rows, int64_t width, Rows<T>* rows) {
  if (!is_of<T>(tensor, device) || tensor.ndim() != 2 || tensor.size(0) != num_rows || tensor.size(1) != width) return false;
  if (width > 1 && tensor.stride(1) != 1) return false;
  if (!std::is_const_v<T> && num_rows > 1 && tensor.stride(0) < width) return false;  // rows that overlap
  *rows = {static_cast<T*>(tensor.data_ptr()), tensor.stride(0)};
  return true;
}

// Whether a sampling parameter may have the value; `most` is infinite for a temperature.
bool is_parameter(double value, double most, bool is_whole) {
  return value >= 0.0 && value <= most && (!is_whole || value == std::floor(value));
}

// One number or one a row. Values in a tensor are checked on a CPU alone.
bool take_parameter(const AnyView& value, DLDevice device, int64_t num_rows, double off, double most, bool is_whole,
                    Parameter* parameter, bool* is_used) {
  if (const auto number = value.try_cast<double>()) {
    if (!is_parameter(*number, most, is_whole)) return false;
    parameter->number = *number;
    *is_used = *number != off;
    return true;
  }
  const auto tensor = value.try_cast<TensorView>();
  if (!tensor.has_value() || !is_on(*tensor, device)) return false;
  if (tensor->ndim() != 1 || tensor->size(0) != num_rows) return false;
  *is_used = true;
  if (has_type(*tensor, kDLFloat, 32)) {
    parameter->type = Parameter::kFloat32;
  } else if (has_type(*tensor, kDLInt, 64)) {
    parameter->type = Parameter::kInt64;
  } else if (has_type(*tensor, kDLInt, 32)) {
    parameter->type = Parameter::kInt32;
  } else {
    return false;
  }
  parameter->data = tensor->data_ptr();
  parameter->stride = tensor->stride(0);
  for (int64_t row = 0; row < num_rows && device.device_type == kDLCPU; ++row) {
    if (!is_parameter((*parameter)[row], most, is_whole)) return false;
  }
  return true;
}

bool take_logits(const TensorView& tensor, Logits* logits) {
  if (tensor.ndim() != 2 || tensor.size(1) == 0) return false;
  if (has_type(tensor, kDLFloat, 32)) {
    logits->type = Logits::kFloat32;
  } else if (has_type(tensor, kDLBfloat, 16)) {
    logits->type = Logits::kBFloat16;
  } else if (has_type(tensor, kDLFloat, 16)) {
    logits->type = Logits::kFloat16;
  } else {
    return false;
  }
  logits->data = tensor.data_ptr();
  logits->num_rows = tensor.size(0);
  logits->vocab_size = tensor.size(1);
  logits->row_stride = tensor.stride(0);
  logits->stride = tensor.size(1) > 1 ? tensor.stride(1) : 1;
  return true;
}

bool take_commands(const TensorView& next_state, const TensorView& is_complete, const TensorView& digit_action,
                   const TensorView& digit_scale, const TensorView& digit_value, DLDevice device,
                   int64_t vocab_size, Commands* commands) {
  if (next_state.ndim() != 2 || digit_scale.ndim() != 1) return false;
  const int64_t num_states = commands->num_states = next_state.size(0);
  const int64_t num_actions = commands->num_actions = digit_scale.size(0);
  Column<const int64_t> scale, value;
  if (!take_table(next_state, device, num_states, vocab_size, &commands->next_state) ||
      !take_table(is_complete, device, num_states, vocab_size, &commands->is_complete) ||
      !take_column(digit_scale, device, num_actions, &scale) || !take_column(digit_value, device, num_actions, &value)) {
    return false;
  }
  if (num_actions > 1 && (scale.stride != 1 || value.stride != 1)) return false;
  commands->digit_scale = scale.data;
  commands->digit_value = value.data;
  return take_table(digit_action, device, num_states, vocab_size, &commands->narrow_action) ||
         take_table(digit_action, device, num_states, vocab_size, &commands->wide_action);
}

// Whether the end-of-sequence tokens are tokens, no two rows have one slot, and every row that is this writer's can be
// stepped without leaving the state's tensors.
bool are_in_range(const RelayStep& step) {
  for (int64_t i = 0; i < step.num_eos; ++i) {
    if (step.eos_token_ids[i] < 0 || step.eos_token_ids[i] >= step.logits.vocab_size) return false;
  }
  for (int64_t row = 0; row < step.logits.num_rows; ++row) {
    const int64_t slot = step.slots[row];
    if (slot < 0 || slot >= step.num_slots) return false;
    if (step.status[slot] != step.writer) continue;
    if (step.num_tokens[slot] < 0 || step.num_tokens[slot] >= step.max_tokens) return false;
    if (step.commands.next_state.data == nullptr) continue;
    if (step.command_state[slot] < 0 || step.command_state[slot] >= step.commands.num_states) return false;
  }
  return are_distinct(step.slots, step.logits.num_rows);
}

void run(const RelayStep& step, int64_t num_threads) {
  const CpuKernels& kernels = cpu_kernels();
  const int64_t num_rows = step.logits.num_rows, vocab_size = step.logits.vocab_size;
  num_threads = limit_threads(num_threads, static_cast<double>(num_rows * vocab_size) / kLogitsOfAThread);
  const int64_t grain = std::max<int64_t>(1, num_rows / (4 * num_threads));
  if (vocab_size > kMostLogits) throw std::bad_alloc();
  const int64_t scratch_size = kernels.step_scratch(vocab_size);
  float* scratch = reserve_scratch(num_threads * scratch_size);
  parallel_for(num_rows, grain, num_threads, [&](int64_t begin, int64_t end, int64_t worker) {
    for (int64_t row = begin; row < end; ++row) kernels.step_row(step, row, scratch + worker * scratch_size);
  });
}

bool has_cuda() {
#ifdef RELAY_HAS_CUDA
  return true;
#else
  return false;
#endif
}

// On a CUDA device nothing is read back, so that values are not checked there; false where there is no kernel.
bool run_on_device([[maybe_unused]] const RelayStep& step, [[maybe_unused]] DLDevice device) {
#ifdef RELAY_HAS_CUDA
  if (device.device_type != kDLCUDA || step.logits.vocab_size > kMaxCudaVocabulary) return false;
  const auto stream = static_cast<cudaStream_t>(TVMFFIEnvGetStream(device.device_type, device.device_id));
  const cudaError_t error = launch_relay_step(step, stream);
  if (error != cudaSuccess) TVM_FFI_THROW(RuntimeError) << "relay_step on CUDA: " << cudaGetErrorString(error);
  return true;
#else
  return false;
#endif
}

// Steps the rows whose status is `writer`, in place. False: refused, nothing done.
bool relay_step(TensorView logits, Optional<TensorView> slots, int64_t writer, TensorView tokens,
                TensorView token_source, TensorView log_probs, TensorView sampling_log_probs, TensorView last_token,
                TensorView num_tokens, TensorView status, TensorView command_state, TensorView command_n,
                TensorView token_limit, TensorView span_limit, TensorView can_call, TensorView ends_on_teacher_eos,
                TensorView prompt_id, TensorView sample_index, Optional<TensorView> next_state,
                Optional<TensorView> is_complete, Optional<TensorView> digit_action, Optional<TensorView> digit_scale,
                Optional<TensorView> digit_value, TensorView eos_token_ids, AnyView temperature, AnyView top_k,
                AnyView top_p, AnyView min_p, bool is_masking, int64_t seed, Optional<TensorView> uniforms,
                int64_t num_threads) {
  RelayStep step;
  if (!take_logits(logits, &step.logits) || tokens.ndim() != 2 || eos_token_ids.ndim() != 1) return false;
  const DLDevice device = logits.device();
  const int64_t num_rows = step.logits.num_rows;
  const int64_t num_slots = step.num_slots = tokens.size(0), width = tokens.size(1);
  step.max_tokens = width - 1;
  step.writer = static_cast<Status>(writer);
  step.is_masking = is_masking;
  step.seed = static_cast<uint64_t>(seed);
  step.num_eos = eos_token_ids.size(0);
  step.slots.step = 1;
  if (slots.has_value() ? !take_integers(slots.value(), device, num_rows, &step.slots) : num_rows != num_slots) return false;
  if (!take_table(tokens, device, num_slots, width, &step.tokens) ||
      !take_table(token_source, device, num_slots, width, &step.token_source) ||
      !take_table(log_probs, device, num_slots, width, &step.log_probs) ||
      !take_table(sampling_log_probs, device, num_slots, width, &step.sampling_log_probs) ||
      !take_column(last_token, device, num_slots, &step.last_token) || !take_column(num_tokens, device, num_slots, &step.num_tokens) ||
      !take_column(status, device, num_slots, &step.status) || !take_column(command_state, device, num_slots, &step.command_state) ||
      !take_column(command_n, device, num_slots, &step.command_n) ||
      !take_column(token_limit, device, num_slots, &step.token_limit) ||
      !take_column(span_limit, device, num_slots, &step.span_limit) || !take_column(can_call, device, num_slots, &step.can_call) ||
      !take_column(ends_on_teacher_eos, device, num_slots, &step.ends_on_teacher_eos) ||
      !take_column(prompt_id, device, num_slots, &step.prompt_id) ||
      !take_column(sample_index, device, num_slots, &step.sample_index) ||
      !take_column(eos_token_ids, device, step.num_eos, &step.eos_token_ids)) {
    return false;
  }
  if (next_state.has_value() &&
      !take_commands(next_state.value(), is_complete.value(), digit_action.value(), digit_scale.value(),
                     digit_value.value(), device, step.logits.vocab_size, &step.commands)) {
    return false;
  }
  bool is_hot = false, is_top_k = false, is_top_p = false, is_min_p = false;
  if (!take_parameter(temperature, device, num_rows, 0.0, INFINITY, false, &step.temperature, &is_hot) ||
      !take_parameter(top_k, device, num_rows, 0.0, kMaxTopK, true, &step.top_k, &is_top_k) ||
      !take_parameter(top_p, device, num_rows, 1.0, 1.0, false, &step.top_p, &is_top_p) ||
      !take_parameter(min_p, device, num_rows, 0.0, 1.0, false, &step.min_p, &is_min_p)) {
    return false;
  }
  step.is_cut = is_top_k || is_top_p || is_min_p;
  if (uniforms.has_value()) {
    step.num_uniforms = step.max_tokens;
    if (!take_table(uniforms.value(), device, num_slots, step.num_uniforms, &step.uniforms)) {
      return false;
    }
  }
  if (device.device_type != kDLCPU) return run_on_device(step, device);
  if (!are_in_range(step)) return false;
  run(step, num_threads);
  return true;
}

}  // namespace
}  // namespace relay

TVM_FFI_DLL_EXPORT_TYPED_FUNC(relay_step, relay::relay_step);

TVM_FFI_DLL_EXPORT_TYPED_FUNC(has_cuda, relay::has_cuda);
