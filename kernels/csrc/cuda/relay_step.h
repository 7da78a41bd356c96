// The CUDA kernel of a relay step. No framework here: pointers in, an error code out.
#pragma once

#include <cuda_runtime_api.h>

#include "../types.h"

namespace relay {

// Steps the rows whose status is `step.writer`, in place, one block a row; reads nothing back. cudaErrorInvalidValue for
// a vocabulary above `kMaxCudaVocabulary`.
cudaError_t launch_relay_step(const RelayStep& step, cudaStream_t stream);

constexpr int64_t kMaxCudaVocabulary = 1 << 20;

}  // namespace relay
