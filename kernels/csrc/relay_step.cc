// `relay_step` for Python.
#include <tvm/ffi/function.h>

#include <algorithm>
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

constexpr int64_t kLogitsOfAThread = 1 << 15;
// Logits a thread is worth waking for: about 50 us of them.
constexpr int64_t kMostLogits = int64_t{1} << 40;
// More of one row than any memory holds; the size of the scratch does not overflow below.

template <typename T>
constexpr int kCode = std::is_floating_point_v<T> ? kDLFloat : std::is_signed_v<T> ? kDLInt : kDLUInt;

// `code` is given for booleans, which are read as bytes.
template <typename T>
bool is_of(const TensorView& tensor, DLDevice device, int code) {
  return is_on(tensor, device) && has_type(tensor, code, 8 * sizeof(T));
}

template <typename T>
bool take_column(const TensorView& tensor, DLDevice device, int64_t count, Column<T>* column,
                 int code = kCode<std::remove_const_t<T>>) {
  if (!is_of<T>(tensor, device, code) || tensor.ndim() != 1 || tensor.size(0) != count) return false;
  if (!std::is_const_v<T> && has_shared_elements(tensor)) return false;
  *column = {static_cast<T*>(tensor.data_ptr()), tensor.stride(0)};
  return true;
}

template <typename T>
bool take_table(const TensorView& tensor, DLDevice device, int64_t num_rows, int64_t width, Rows<T>* rows,
                int code = kCode<std::remove_const_t<T>>) {
  if (!is_of<T>(tensor, device, code) || tensor.ndim() != 2 || tensor.size(0) != num_rows || tensor.size(1) != width) return false;
  if (width > 1 && tensor.stride(1) != 1) return false;
  if (!std::is_const_v<T> && num_rows > 1 && tensor.stride(0) < width) return false;  // rows that overlap
  *rows = {static_cast<T*>(tensor.data_ptr()), tensor.stride(0)};
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

bool take_commands(const TensorView& next_state, const TensorView& is_complete, const TensorView& is_opening,
                   const TensorView& digit_action, const TensorView& digit_scale, const TensorView& digit_value,
                   DLDevice device, int64_t vocab_size, Commands* commands) {
  if (next_state.ndim() != 2 || digit_scale.ndim() != 1) return false;
  const int64_t num_states = commands->num_states = next_state.size(0);
  const int64_t num_actions = commands->num_actions = digit_scale.size(0);
  Column<const int64_t> scale, value;
  if (!take_table(next_state, device, num_states, vocab_size, &commands->next_state) ||
      !take_table(is_complete, device, num_states, vocab_size, &commands->is_complete, kDLBool) ||
      !take_table(is_opening, device, num_states, vocab_size, &commands->is_opening, kDLBool) ||
      !take_column(digit_scale, device, num_actions, &scale) || !take_column(digit_value, device, num_actions, &value)) {
    return false;
  }
  if (num_actions > 1 && (scale.stride != 1 || value.stride != 1)) return false;
  commands->digit_scale = scale.data;
  commands->digit_value = value.data;
  return take_table(digit_action, device, num_states, vocab_size, &commands->narrow_action) ||
         take_table(digit_action, device, num_states, vocab_size, &commands->wide_action);
}

// Whether a row's sampling parameters are numbers in their ranges.
bool is_sampling(const RelayStep& step, int64_t index) {
  const float temperature = step.temperature[index], top_p = step.top_p[index], min_p = step.min_p[index];
  return temperature >= 0.0f && step.top_k[index] >= 0 && top_p >= 0.0f && top_p <= 1.0f && min_p >= 0.0f && min_p <= 1.0f;
}

// Whether the end-of-sequence tokens are tokens, no row is named twice, and every row that is this writer's can be
// stepped without leaving the state's tensors, and as `truncates` promises.
bool are_in_range(const RelayStep& step, bool truncates) {
  for (int64_t i = 0; i < step.num_eos; ++i) {
    if (step.eos_token_ids[i] < 0 || step.eos_token_ids[i] >= step.logits.vocab_size) return false;
  }
  for (int64_t item = 0; item < step.logits.num_rows; ++item) {
    const int64_t index = step.rows[item];
    if (index < 0 || index >= step.num_rows) return false;
    if (step.status[index] != step.writer) continue;
    if (step.num_tokens[index] < 0 || step.num_tokens[index] >= step.max_tokens) return false;
    if (!is_sampling(step, index)) return false;
    if (!truncates && (step.top_k[index] > 0 || step.top_p[index] < 1.0f || step.min_p[index] > 0.0f)) return false;
    if (step.commands.next_state.data == nullptr) continue;
    if (step.command_state[index] < 0 || step.command_state[index] >= step.commands.num_states) return false;
    if (step.command_rule[index] > kMaskOpen) return false;
  }
  return are_distinct(step.rows, step.logits.num_rows);
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
    for (int64_t item = begin; item < end; ++item) kernels.step_row(step, item, scratch + worker * scratch_size);
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

// Steps the rows whose status is `writer`, in place. False: refused, nothing done. The tensors of the state and of the
// table come in the order of RelayStepState (without num_arrived) and CommandTable.
bool relay_step(TensorView logits, Optional<TensorView> rows, int64_t writer, TensorView tokens,
                TensorView token_source, TensorView log_probs, TensorView sampling_log_probs, TensorView last_token,
                TensorView num_tokens, TensorView status, TensorView command_state, TensorView command_n,
                TensorView token_limit, TensorView span_limit, TensorView command_rule, TensorView ends_on_teacher_eos,
                TensorView temperature, TensorView top_k, TensorView top_p, TensorView min_p, TensorView seed,
                TensorView prompt_id, TensorView sample_index, Optional<TensorView> next_state,
                Optional<TensorView> is_complete, Optional<TensorView> is_opening, Optional<TensorView> digit_action,
                Optional<TensorView> digit_scale, Optional<TensorView> digit_value, TensorView eos_token_ids,
                bool truncates, int64_t num_threads) {
  RelayStep step;
  if (!take_logits(logits, &step.logits) || tokens.ndim() != 2 || eos_token_ids.ndim() != 1) return false;
  const DLDevice device = logits.device();
  const int64_t num_logits = step.logits.num_rows;
  const int64_t num_rows = step.num_rows = tokens.size(0), width = tokens.size(1);
  step.max_tokens = width - 1;
  step.writer = static_cast<Status>(writer);
  step.num_eos = eos_token_ids.size(0);
  step.rows.step = 1;
  if (rows.has_value() ? !take_integers(rows.value(), device, num_logits, &step.rows) : num_logits != num_rows) return false;
  if (!take_table(tokens, device, num_rows, width, &step.tokens) ||
      !take_table(token_source, device, num_rows, width, &step.token_source) ||
      !take_table(log_probs, device, num_rows, width, &step.log_probs) ||
      !take_table(sampling_log_probs, device, num_rows, width, &step.sampling_log_probs) ||
      !take_column(last_token, device, num_rows, &step.last_token) ||
      !take_column(num_tokens, device, num_rows, &step.num_tokens) ||
      !take_column(status, device, num_rows, &step.status) ||
      !take_column(command_state, device, num_rows, &step.command_state) ||
      !take_column(command_n, device, num_rows, &step.command_n) ||
      !take_column(token_limit, device, num_rows, &step.token_limit) ||
      !take_column(span_limit, device, num_rows, &step.span_limit) ||
      !take_column(command_rule, device, num_rows, &step.command_rule) ||
      !take_column(ends_on_teacher_eos, device, num_rows, &step.ends_on_teacher_eos, kDLBool) ||
      !take_column(temperature, device, num_rows, &step.temperature) ||
      !take_column(top_k, device, num_rows, &step.top_k) || !take_column(top_p, device, num_rows, &step.top_p) ||
      !take_column(min_p, device, num_rows, &step.min_p) || !take_column(seed, device, num_rows, &step.seed) ||
      !take_column(prompt_id, device, num_rows, &step.prompt_id) ||
      !take_column(sample_index, device, num_rows, &step.sample_index) ||
      !take_column(eos_token_ids, device, step.num_eos, &step.eos_token_ids)) {
    return false;
  }
  if (next_state.has_value() &&
      !take_commands(next_state.value(), is_complete.value(), is_opening.value(), digit_action.value(),
                     digit_scale.value(), digit_value.value(), device, step.logits.vocab_size, &step.commands)) {
    return false;
  }
  if (device.device_type != kDLCPU) return run_on_device(step, device);
  if (!are_in_range(step, truncates)) return false;
  run(step, num_threads);
  return true;
}

}  // namespace
}  // namespace relay

TVM_FFI_DLL_EXPORT_TYPED_FUNC(relay_step, relay::relay_step);

TVM_FFI_DLL_EXPORT_TYPED_FUNC(has_cuda, relay::has_cuda);
