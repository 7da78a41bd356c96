// Splits work over the threads of the OpenMP runtime that PyTorch has loaded.
//
// Linking a runtime of our own could bring a second pool of threads, whose idle members spin against PyTorch's. So the
// entry point that GCC's, LLVM's and Intel's runtimes share is looked up in the process; without one all is done by
// the calling thread.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace relay {

using ParallelBody = void (*)(void*);

// Runs `body(context)` in the calling thread and in up to `num_threads` - 1 others, at once.
void run_in_threads(int num_threads, ParallelBody body, void* context);

// Whether there is a runtime to run threads with.
bool has_threads();

// Memory for `count` floats of the calling thread, valid until its next call. Taken before a parallel region: nothing is
// allocated inside one, where an exception would end the process.
float* reserve_scratch(int64_t count);

// At most `num_threads`, one for each unit of work begun; at least one.
inline int64_t limit_threads(int64_t num_threads, double num_units) {
  return std::max<int64_t>(1, static_cast<int64_t>(std::min(static_cast<double>(num_threads), 1.0 + num_units)));
}

// body(begin, end, worker) over pieces of 0..count of `grain` each, in any order, on at most `num_threads` threads. Workers are
// numbered from 0. The body must not throw.
template <typename Body>
void parallel_for(int64_t count, int64_t grain, int64_t num_threads, const Body& body) {
  const int64_t num_pieces = (count + grain - 1) / grain;
  if (num_threads > num_pieces) num_threads = num_pieces;
  if (num_threads <= 1) {
    if (count > 0) body(0, count, 0);
    return;
  }
  struct Context {
    const Body* body;
    int64_t count, grain;
    std::atomic<int64_t> next{0}, num_workers{0};
  } context{&body, count, grain};
  run_in_threads(
      static_cast<int>(num_threads),
      [](void* pointer) {
        auto& shared = *static_cast<Context*>(pointer);
        const int64_t worker = shared.num_workers.fetch_add(1);
        for (int64_t begin; (begin = shared.next.fetch_add(shared.grain)) < shared.count;) {
          const int64_t end = begin + shared.grain;
          (*shared.body)(begin, end < shared.count ? end : shared.count, worker);
        }
      },
      &context);
}

}  // namespace relay
