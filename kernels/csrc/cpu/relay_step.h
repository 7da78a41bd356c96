// One row of a relay step on a CPU.
#pragma once

#include "sampling.h"

namespace relay {
namespace RELAY_ISA {
namespace {

// scratch: `step_scratch` floats.
void step_row(const RelayStep& step, int64_t item, float* scratch) {
  StepRow row;
  if (!take_row(step, item, &row)) return;
  const Sampling sampling = take_sampling(step, row);
  const float uniform = sampling.temperature == 0.0f ? 0.0f : take_uniform(step, row);
  finish_row(step, row, sample(step.logits, item, sampling, uniform, find_banned(step, row), scratch));
}

}  // namespace
}  // namespace RELAY_ISA
}  // namespace relay
