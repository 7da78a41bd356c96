// What one step does to a row besides sampling: its random number, the automaton, budgets, stops and writes. The same
// code on a CPU and on a CUDA device.
#pragma once

#include "types.h"

#define RELAY_BOTH RELAY_ACCESS inline

namespace relay {
namespace RELAY_ISA {
namespace {

// One row of the state, which exists and whose position and automaton state lie inside the tensors. Read once: nothing
// that is written meanwhile, by a row named twice or through tensors that overlap, leads out of them.
struct StepRow {
  int64_t index, position, command_state;
};

// Reads the state's row for row `item` of the logits; false where it is not this writer's, or a value leads out of the
// state's tensors.
RELAY_BOTH bool take_row(const RelayStep& step, int64_t item, StepRow* row) {
  const int64_t index = step.rows[item];
  if (index < 0 || index >= step.num_rows || step.status[index] != step.writer) return false;
  const int64_t position = step.num_tokens[index];
  if (position < 0 || position >= step.max_tokens) return false;
  *row = {index, position, 0};
  if (step.commands.next_state.data == nullptr) return true;
  row->command_state = step.command_state[index];
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

// How a row is sampled; see relay_step/sampling.py.
struct Sampling {
  float temperature, top_p, min_p;
  int64_t top_k;  // 0 where it cuts nothing away

  RELAY_ACCESS bool is_cut() const { return top_k > 0 || top_p < 1.0f || min_p > 0.0f; }
};

RELAY_BOTH Sampling take_sampling(const RelayStep& step, const StepRow& row) {
  const int64_t index = row.index, top_k = step.top_k[index];
  return {step.temperature[index], step.top_p[index], step.min_p[index],
          top_k > 0 && top_k < step.logits.vocab_size ? top_k : 0};
}

// Moves the automaton of a student's row on; whether the token completes a command. An action that the table does not have
// keeps n. Products of wild numbers wrap around.
RELAY_BOTH bool advance(const RelayStep& step, const StepRow& row, int64_t token) {
  const Commands& commands = step.commands;
  const int64_t state = row.command_state;
  const int64_t action = commands.narrow_action.data != nullptr ? commands.narrow_action[state][token]
                                                                : commands.wide_action[state][token];
  if (action >= 0 && action < commands.num_actions) {
    const auto product = static_cast<uint64_t>(step.command_n[row.index]) * static_cast<uint64_t>(commands.digit_scale[action]);
    const auto n = static_cast<int64_t>(product + static_cast<uint64_t>(commands.digit_value[action]));
    step.command_n[row.index] = n < kMaxRequest ? n : kMaxRequest;
  }
  step.command_state[row.index] = commands.next_state[state][token];
  return commands.is_complete[state][token] != 0;
}

RELAY_BOTH void write(const RelayStep& step, const StepRow& row, const Sample& sample) {
  const int64_t index = row.index, position = row.position;
  step.num_tokens[index] = position + 1;
  step.tokens[index][position] = sample.token;
  step.token_source[index][position] = step.writer;
  step.log_probs[index][position] = sample.log_prob;
  step.sampling_log_probs[index][position] = sample.sampling_log_prob;
  step.last_token[index] = sample.token;
}

// The number in [0, 1) that the row draws at its position.
RELAY_BOTH float take_uniform(const RelayStep& step, const StepRow& row) {
  const int64_t index = row.index;
  const uint32_t stream = step.writer == kStudent ? 0 : 1;
  return philox_uniform(static_cast<uint64_t>(step.seed[index]), step.prompt_id[index], step.sample_index[index],
                        row.position, stream);
}

// The tokens that a row must not draw: those of two rows of flags, which may be one and the same.
struct Banned {
  const uint8_t *first = nullptr, *second = nullptr;  // both null: it may draw all

  RELAY_ACCESS bool has_any() const { return first != nullptr; }
  RELAY_ACCESS bool operator[](int64_t token) const { return (first[token] | second[token]) != 0; }
};

RELAY_BOTH Banned find_banned(const RelayStep& step, const StepRow& row) {
  const Commands& commands = step.commands;
  if (commands.next_state.data == nullptr || step.command_rule[row.index] < kMaskClose) return {};
  const uint8_t* closing = commands.is_complete[row.command_state];
  return {closing, step.command_rule[row.index] == kMaskClose ? closing : commands.is_opening[row.command_state]};
}

// Writes the token and moves the row's state on.
RELAY_BOTH void finish_row(const RelayStep& step, const StepRow& row, const Sample& sampled) {
  const int64_t index = row.index, position = row.position;
  bool is_eos = false;
  for (int64_t i = 0; i < step.num_eos; ++i) is_eos |= step.eos_token_ids[i] == sampled.token;
  const bool is_full = position + 1 >= step.token_limit[index];
  if (step.writer == kStudent) {
    const bool has_table = step.commands.next_state.data != nullptr;
    const bool is_call = has_table && advance(step, row, sampled.token) && step.command_rule[index] == kCall;
    step.status[index] = is_eos ? kStop : is_full ? kLength : is_call ? kCalled : kStudent;
    write(step, row, sampled);
  } else {
    const bool ends = step.ends_on_teacher_eos[index] != 0;
    const bool is_delivered = position + 1 >= step.span_limit[index];
    step.status[index] = is_eos         ? (ends ? kTeacherStop : kTeacherEnded)
                        : is_full      ? kLength
                        : is_delivered ? kDelivered
                                       : kTeacher;
    if (ends || !is_eos) write(step, row, sampled);
  }
}

}  // namespace
}  // namespace RELAY_ISA
}  // namespace relay
