// One row of a relay step on a CPU.
#pragma once

#include "sampling.h"

namespace relay {
namespace RELAY_ISA {
namespace {

// scratch: `step_scratch` floats.
void step_row(const RelayStep& step, int64_t row, float* scratch) {
  const int64_t slot = step.slots[row];
  if (step.status[slot] != step.writer) return;
  const SamplingParameters parameters = {
      static_cast<float>(step.temperature[row]), static_cast<float>(step.top_p[row]),
      static_cast<float>(step.min_p[row]), static_cast<int64_t>(step.top_k[row]), step.is_cut};
  const float uniform = parameters.temperature == 0.0f ? 0.0f : take_uniform(step, slot);
  finish_row(step, slot, sample(step.logits, row, parameters, uniform, find_banned(step, slot), scratch));
}

}  // namespace
}  // namespace RELAY_ISA
}  // namespace relay
