// Compiled once per instruction set, with RELAY_ISA naming it: see CMakeLists.txt.
#include "kernels.h"

#include "decode_attention.h"
#include "pointwise.h"
#include "relay_step.h"

#define RELAY_TEXT(name) #name
#define RELAY_NAME(name) RELAY_TEXT(name)

namespace relay {
namespace RELAY_ISA {

extern const CpuKernels kKernels;
const CpuKernels kKernels = {
    RELAY_NAME(RELAY_ISA),
    attend<float>,
    attend<BFloat16>,
    append<float>,
    append<BFloat16>,
    [](int64_t longest, int64_t head_size) { return kMaxTileRows * (longest + kLanes + head_size); },
    add_rms_norm<float>,
    add_rms_norm<BFloat16>,
    rotate_heads<float>,
    rotate_heads<BFloat16>,
    silu_mul<float>,
    silu_mul<BFloat16>,
    step_row,
    [](int64_t vocab_size) { return 2 * (vocab_size + kLanes); },
};

}  // namespace RELAY_ISA
}  // namespace relay
