// What one step does to a row besides sampling: its random number, the automaton, budgets, stops and writes. The same
// code on a CPU and on a CUDA device.
#pragma once

#include "types.h"

#ifdef __CUDACC__
#define RELAY_BOTH __host__ __device__ inline
#else
#define RELAY_BOTH inline
#endif

namespace relay {
namespace RELAY_ISA {
namespace {

// One row of a step, whose slot, position and automaton state lie inside the tensors. Read once: nothing that is written
// meanwhile, by a row with the same slot or through tensors that overlap, leads out of them.
struct StepRow {
  int64_t slot, position, command_state;
};

// Reads row `index`; false where it is not this writer's, or a value leads out of the state's tensors.
RELAY_BOTH bool take_row(const RelayStep& step, int64_t index, StepRow* row) {
  const int64_t slot = step.slots[index];
  if (slot < 0 || slot >= step.num_slots || step.status[slot] != step.writer) return false;
  const int64_t position = step.num_tokens[slot];
  if (position < 0 || position >= step.max_tokens) return false;
  *row = {slot, position, 0};
  if (step.commands.next_state.data == nullptr) return true;
  row->command_state = step.command_state[slot];
  return row->command_state >= 0 && row->command_state < step.commands.num_states;
}

struct Sample {
  int64_t token;
  float log_prob, sampling_log_prob;
};

// Philox4x32-10, see relay_step/philox.py: 24 random bits of (seed; prompt, sample, position, writer).
RELAY_BOTH float philox_uniform(uint64_t seed, int64_t prompt, int64_t sample, int64_t position, uint32_t stream) {
  uint32_t c0 = static_cast<uint32_t>(prompt), c1 = static_cast<uint32_t>(sample);
  uint32_t c2 = static_cast<uint32_t>(position), c3 = stream + 4 * static_cast<uint32_t>(prompt >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c0, b = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return static_cast<float>(c0 >> 8) * 5.9604644775390625e-8f;
}

// The top-k of a row; 0, which is off, for what cuts nothing away.
RELAY_BOTH int64_t take_top_k(const RelayStep& step, int64_t index) {
  const double top_k = step.top_k[index];
  return top_k > 0.0 && top_k < static_cast<double>(step.logits.vocab_size) ? static_cast<int64_t>(top_k) : 0;
}

// Moves the automaton of a student's row on; whether the token completes a call. An action that the table does not have
// keeps n. Products of wild numbers wrap around.
RELAY_BOTH bool advance(const RelayStep& step, const StepRow& row, int64_t token) {
  const Commands& commands = step.commands;
  const int64_t state = row.command_state;
  const int64_t action = commands.narrow_action.data != nullptr ? commands.narrow_action[state][token]
                                                                : commands.wide_action[state][token];
  if (action >= 0 && action < commands.num_actions) {
    const auto product = static_cast<uint64_t>(step.command_n[row.slot]) * static_cast<uint64_t>(commands.digit_scale[action]);
    const auto n = static_cast<int64_t>(product + static_cast<uint64_t>(commands.digit_value[action]));
    step.command_n[row.slot] = n < kMaxRequest ? n : kMaxRequest;
  }
  step.command_state[row.slot] = commands.next_state[state][token];
  return commands.is_complete[state][token] != 0;
}

RELAY_BOTH void write(const RelayStep& step, const StepRow& row, const Sample& sample) {
  const int64_t slot = row.slot, position = row.position;
  step.num_tokens[slot] = position + 1;
  step.tokens[slot][position] = sample.token;
  step.token_source[slot][position] = step.writer;
  step.log_probs[slot][position] = sample.log_prob;
  step.sampling_log_probs[slot][position] = sample.sampling_log_prob;
  step.last_token[slot] = sample.token;
}

// The row's number in [0, 1) at its position: given, or of its key.
RELAY_BOTH float take_uniform(const RelayStep& step, const StepRow& row) {
  const int64_t slot = row.slot, position = row.position;
  if (step.uniforms.data != nullptr) {
    return step.uniforms[slot][position < step.num_uniforms ? position : step.num_uniforms - 1];
  }
  const uint32_t stream = step.writer == kStudent ? 0 : 1;
  return philox_uniform(step.seed, step.prompt_id[slot], step.sample_index[slot], position, stream);
}

// The tokens that the row must not draw, by index; null where it may draw all.
RELAY_BOTH const uint8_t* find_banned(const RelayStep& step, const StepRow& row) {
  if (!step.is_masking || step.commands.next_state.data == nullptr || step.can_call[row.slot] != 0) return nullptr;
  return step.commands.is_complete[row.command_state];
}

// Writes the token and moves the row's state on.
RELAY_BOTH void finish_row(const RelayStep& step, const StepRow& row, const Sample& sampled) {
  const int64_t slot = row.slot, position = row.position;
  bool is_eos = false;
  for (int64_t i = 0; i < step.num_eos; ++i) is_eos |= step.eos_token_ids[i] == sampled.token;
  const bool is_full = position + 1 >= step.token_limit[slot];
  if (step.writer == kStudent) {
    const bool has_table = step.commands.next_state.data != nullptr;
    const bool is_call = has_table && advance(step, row, sampled.token) && step.can_call[slot] != 0;
    step.status[slot] = is_eos ? kStop : is_full ? kLength : is_call ? kCalled : kStudent;
    write(step, row, sampled);
  } else {
    const bool ends = step.ends_on_teacher_eos[slot] != 0;
    const bool is_delivered = position + 1 >= step.span_limit[slot];
    step.status[slot] = is_eos         ? (ends ? kTeacherStop : kTeacherEnded)
                        : is_full      ? kLength
                        : is_delivered ? kDelivered
                                       : kTeacher;
    if (ends || !is_eos) write(step, row, sampled);
  }
}

}  // namespace
}  // namespace RELAY_ISA
}  // namespace relay
