// One row of a relay step on a CPU.
#pragma once

#include "sampling.h"

namespace relay {
namespace RELAY_ISA {
namespace {

// scratch: `step_scratch` floats.
void step_row(const RelayStep& step, int64_t index, float* scratch) {
  StepRow row;
  if (!take_row(step, index, &row)) return;
  const SamplingParameters parameters = {
      static_cast<float>(step.temperature[index]), static_cast<float>(step.top_p[index]),
      static_cast<float>(step.min_p[index]), take_top_k(step, index), step.is_cut};
  const float uniform = parameters.temperature == 0.0f ? 0.0f : take_uniform(step, row);
  finish_row(step, row, sample(step.logits, index, parameters, uniform, find_banned(step, row), scratch));
}

}  // namespace
}  // namespace RELAY_ISA
}  // namespace relay
