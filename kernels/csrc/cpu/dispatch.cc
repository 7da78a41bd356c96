#include "kernels.h"

namespace relay {

namespace baseline {
extern const CpuKernels kKernels;
}
#ifdef RELAY_HAS_X86_64_V3
namespace x86_64_v3 {
extern const CpuKernels kKernels;
}
#endif
#ifdef RELAY_HAS_X86_64_V4
namespace x86_64_v4 {
extern const CpuKernels kKernels;
}
#endif

static const CpuKernels& choose() {
#ifdef RELAY_HAS_X86_64_V4
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")) {
    return x86_64_v4::kKernels;
  }
#endif
#ifdef RELAY_HAS_X86_64_V3
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    return x86_64_v3::kKernels;
  }
#endif
  return baseline::kKernels;
}

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = choose();
  return chosen;
}

}  // namespace relay
