// What this library holds, for `python -m relay_kernels`.
#include <tvm/ffi/function.h>
#include <tvm/ffi/string.h>

#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace relay {
namespace {

tvm::ffi::String describe() {
  std::string text = "CPU kernels for ";
  text += RELAY_CPU_SETS;
  text += " (this processor takes ";
  text += cpu_kernels().name;
  text += has_threads() ? "), threads of the OpenMP runtime in the process" : "), one thread: no OpenMP runtime found";
  text += "; ";
  text += RELAY_CUDA_TEXT;
  text += "; compiled with ";
  text += RELAY_COMPILER;
  return text;
}

}  // namespace
}  // namespace relay

TVM_FFI_DLL_EXPORT_TYPED_FUNC(describe, relay::describe);
