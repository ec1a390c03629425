// Tells ThreadSanitizer when OpenMP's threads start and when they are done. libgomp is not instrumented, so without this every write before a
// parallel loop races with every read inside of it: 48 reports in 18 calls of rms_norm.
//
// Preloaded (tests/sanitize.py), it stands before GOMP_parallel, which every `#pragma omp parallel` calls, at::parallel_for's included. What the
// caller did happens before each thread's work, and that before what the caller does next. Nothing is said about the threads among each other, so
// two that meet in memory are still a race.
#include <dlfcn.h>

extern "C" void __tsan_acquire(void*);
extern "C" void __tsan_release(void*);

namespace {

using Body = void (*)(void*);
using Parallel = void (*)(Body, void*, unsigned, unsigned);

struct Region {
  Body body;
  void* data;
};

void run(void* pointer) {
  Region* const region = static_cast<Region*>(pointer);
  __tsan_acquire(region);
  region->body(region->data);
  __tsan_release(region);
}

}  // namespace

extern "C" void GOMP_parallel(Body body, void* data, unsigned threads, unsigned flags) {
  static const Parallel next = reinterpret_cast<Parallel>(dlsym(RTLD_NEXT, "GOMP_parallel"));
  Region region{body, data};
  __tsan_release(&region);
  next(run, &region, threads, flags);
  __tsan_acquire(&region);
}
