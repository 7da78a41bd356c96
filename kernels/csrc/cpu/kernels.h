// The CPU kernels of one instruction set, and which of them this processor runs.
#pragma once

#include "../types.h"

namespace relay {

struct CpuKernels {
  const char* name;
  // One row and key/value head of an attention; `attend_scratch` floats of scratch.
  void (*attend_float32)(const Attention<float>&, int64_t row, int64_t kv_head, float* scratch, int64_t longest);
  void (*attend_bfloat16)(const Attention<BFloat16>&, int64_t row, int64_t kv_head, float* scratch, int64_t longest);
  // The append alone.
  void (*append_float32)(const Attention<float>&, int64_t row, int64_t kv_head);
  void (*append_bfloat16)(const Attention<BFloat16>&, int64_t row, int64_t kv_head);
  int64_t (*attend_scratch)(int64_t longest, int64_t head_size);
  // Rows begin..end-1 of the pointwise ops; of `rotate_heads`, tokens of all rows.
  void (*add_rms_norm_float32)(const AddRmsNorm<float>&, int64_t begin, int64_t end);
  void (*add_rms_norm_bfloat16)(const AddRmsNorm<BFloat16>&, int64_t begin, int64_t end);
  void (*rotate_heads_float32)(const RotateHeads<float>&, int64_t begin, int64_t end);
  void (*rotate_heads_bfloat16)(const RotateHeads<BFloat16>&, int64_t begin, int64_t end);
  void (*silu_mul_float32)(const SiluMul<float>&, int64_t begin, int64_t end);
  void (*silu_mul_bfloat16)(const SiluMul<BFloat16>&, int64_t begin, int64_t end);
  // One row of a step; `step_scratch` floats of scratch.
  void (*step_row)(const RelayStep&, int64_t item, float* scratch);
  int64_t (*step_scratch)(int64_t vocab_size);
};

// The widest set that the library has and this processor can run; looked up once.
const CpuKernels& cpu_kernels();

}  // namespace relay
