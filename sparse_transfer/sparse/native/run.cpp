// The plain C interface: run a program, and what this library is made for.
#include <omp.h>
#include <pthread.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "convolution.h"

#define EXPORT __attribute__((visibility("default")))

using namespace sparse;

namespace {

// A forked child has none of its parent's threads, and the runtime would wait for them.
bool is_forked_child = false;
__attribute__((constructor)) void watch_forks() {
  pthread_atfork(nullptr, nullptr, [] { is_forked_child = true; });
}

struct Place {
  float *own, *batch;  // the two arenas
  void* const* tensors;
  int64_t item, images;  // which item, and how many of its images exist
};

Element* start(const Planes& p, const Place& place) {
  return reinterpret_cast<Element*>(p.item < 0 ? place.own + p.at
                                               : place.batch + p.at + place.item * p.item);
}

bool is_tiled(const Op& op) {
  return op.kind == SPARSE || op.kind == DENSE || op.kind == GRADIENT;
}
int tiles(const Op& op) {
  return pieces(op.count_x, op.tile_width) * pieces(op.count_y, op.tile_height);
}
int row_parts(const Op& op, int threads) {  // enough work for everybody
  const int wanted = threads == 1 ? 1 : pieces(4 * threads, tiles(op));
  return std::max(1, std::min(wanted, op.n_rows / 16));
}
int chunks(const Op& op, int threads) {
  if (is_tiled(op)) return tiles(op) * row_parts(op, threads);
  return threads == 1 ? 1 : std::min(4 * threads, (op.kind == LOAD ? op.out : op.in).channels);
}

void run_chunk(const Op& op, const Place& place, int chunk, int threads) {
  Element* in = op.in.channels ? start(op.in, place) : nullptr;
  Element* out = op.out.channels ? start(op.out, place) : nullptr;
  const Element* other = op.other.channels ? start(op.other, place) : nullptr;
  if (is_tiled(op)) {
    const int parts = row_parts(op, threads), part = chunk % parts;
    const int group = op.kind == DENSE ? DENSE_ROWS : 1, groups = pieces(op.n_rows, group);
    const int first = groups * part / parts * group;
    const int last = std::min(op.n_rows, groups * (part + 1) / parts * group);
    float* gradient = op.gradient ? op.gradient + omp_get_thread_num() * op.gradient_stride : nullptr;
    convolve(op, in, other, out, gradient, chunk / parts, first, last);
    return;
  }
  const int all = (op.kind == LOAD ? op.out : op.in).channels, n = chunks(op, threads);
  const int c0 = (int64_t)all * chunk / n, c1 = (int64_t)all * (chunk + 1) / n;
  float* tensor = static_cast<float*>(place.tensors ? place.tensors[op.tensor] : nullptr);
  if (op.kind == LOAD || op.kind == STORE)
    tensor += place.item * (op.kind == LOAD ? op.out : op.in).images * op.strides[0];
  switch (op.kind) {
    case LOAD: return load_planes(op, tensor, out, place.images, c0, c1);
    case STORE: return store_planes(op, in, tensor, place.images, c0, c1);
    case HALO: return fill_halo(op, in, c0, c1);
    case MAX_POOL: return pool<true>(op, in, out, c0, c1);
    case AVERAGE_POOL: return pool<false>(op, in, out, c0, c1);
    case MEAN: return mean(op, in, out, c0, c1);
    case POINTWISE: return pointwise(op, in, other, out, c0, c1);
    case REGRID:
      if (op.in.item >= 0) in = reinterpret_cast<Element*>(place.batch + op.in.at);
      return regrid(op, in, out, place.item, place.images, c0, c1);
  }
}

Place place_of(const Segment& s, int64_t item, int64_t batch, float* own, float* shared,
               void* const* tensors) {
  return {own, shared, tensors, item, std::min<int64_t>(s.images, batch - item * s.images)};
}

}  // namespace

extern "C" {

// Items that all threads can take one each are run by one thread from first to last operation, out
// of its own arena; the threads share the operations of those that are left.
EXPORT void sparse_run(const Segment* segments, int32_t n_segments, const Op* ops, void* const* tensors,
                int64_t batch, float* own, int64_t own_stride, float* shared, int32_t threads) {
  if (is_forked_child) threads = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int team = omp_get_num_threads();
    float* arena = own + omp_get_thread_num() * own_stride;
    for (int s = 0; s < n_segments; ++s) {
      const Segment& segment = segments[s];
      const int64_t items = (batch + segment.images - 1) / segment.images;
      const int64_t alone = items / team * team;
#pragma omp for schedule(dynamic, 1)
      for (int64_t item = 0; item < alone; ++item) {
        const Place place = place_of(segment, item, batch, arena, shared, tensors);
        for (int i = segment.first; i < segment.first + segment.count; ++i)
          for (int c = 0, n = chunks(ops[i], 1); c < n; ++c) run_chunk(ops[i], place, c, 1);
      }
      for (int64_t item = alone; item < items; ++item) {
        const Place place = place_of(segment, item, batch, own, shared, tensors);
        for (int i = segment.first; i < segment.first + segment.count; ++i) {
          const int n = chunks(ops[i], team);
#pragma omp for schedule(dynamic, 1)
          for (int c = 0; c < n; ++c) run_chunk(ops[i], place, c, team);
        }
      }
    }
  }
}

EXPORT int32_t sparse_team(int32_t threads) {  // how many threads a run gets
  if (is_forked_child) return 1;
  int32_t team = 1;
#pragma omp parallel num_threads(threads)
#pragma omp single
  team = omp_get_num_threads();
  return team;
}

// Ask for huge pages: a tile touches too many small ones. Without them all is slower, not wrong.
EXPORT void sparse_advise(void* start, int64_t bytes) {
#if defined(__linux__)
  madvise(start, bytes, MADV_HUGEPAGE);
#else
  (void)start, (void)bytes;
#endif
}

// Sizes that the caller must know, and check against its own idea of the structures.
EXPORT void sparse_facts(int32_t* facts) {
  const int32_t all[] = {sizeof(Planes), sizeof(Op),  sizeof(Segment), sizeof(Entry),
                         LANES,          WIDTH,       MAX_TILE,        MAX_WIDTH,
                         MAX_HEIGHT,     DENSE_ROWS,  DENSE_TILE};
  for (const int32_t fact : all) *facts++ = fact;
}

// The best instruction level of this CPU: 0 portable, 1 AVX2, 2 AVX-512, 3 with bf16, 4 and float16.
EXPORT int32_t sparse_cpu_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))) return 0;
  for (const bool has : {__builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512bw"),
                         __builtin_cpu_supports("avx512dq"), __builtin_cpu_supports("avx512vl"),
                         __builtin_cpu_supports("avx512cd")})
    if (!has) return 1;
  if (!__builtin_cpu_supports("avx512bf16")) return 2;
#if defined(__clang__) || __GNUC__ >= 12
  if (__builtin_cpu_supports("avx512fp16")) return 4;
#endif
  return 3;
#else
  return 0;
#endif
}
}
