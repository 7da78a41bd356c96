#include "parallel.h"

#include <dlfcn.h>

#include <vector>

namespace relay {
namespace {

using GompParallel = void (*)(ParallelBody, void*, unsigned, unsigned);

GompParallel find_runtime() {
  static const auto found = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

}  // namespace

float* reserve_scratch(int64_t count) {
  static thread_local std::vector<float> scratch;
  if (scratch.size() < static_cast<size_t>(count)) scratch.resize(static_cast<size_t>(count));
  return scratch.data();
}

bool has_threads() { return find_runtime() != nullptr; }

void run_in_threads(int num_threads, ParallelBody body, void* context) {
  if (const GompParallel run = find_runtime()) {
    run(body, context, static_cast<unsigned>(num_threads), 0);
  } else {
    body(context);
  }
}

}  // namespace relay
