// The plain C interface: run a program, and what this library is made for.
#include <omp.h>
#include <pthread.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "convolution.h"
#if !defined(SPARSE_BF16) && !defined(SPARSE_FP16)
#include "training.h"  // in floats only
#endif

#define EXPORT __attribute__((visibility("default")))

using namespace sparse;

namespace {

// A forked child has none of its parent's threads, and the runtime would wait for them.
bool is_forked_child = false;
__attribute__((constructor)) void watch_forks() {
  pthread_atfork(nullptr, nullptr, [] { is_forked_child = true; });
}

struct Place {
  float *own, *batch, *saved;  // the arenas
  void* const* tensors;
  int64_t item, images;  // which item, and how many of its images exist
};

float* first_item(const Planes& p, const Place& place) {
  if (p.item < 0) return place.own + p.at;
  if (p.tensor >= 0) return static_cast<float*>(place.tensors[p.tensor]);
  return (p.is_saved ? place.saved : place.batch) + p.at;
}
Element* start(const Planes& p, const Place& place) {
  return reinterpret_cast<Element*>(first_item(p, place) + (p.item < 0 ? 0 : place.item * p.item));
}
bool is_of_entries(const Op& op) {
  return op.kind == WRITE_VALUES || op.kind == COLLECT_GRADIENT;
}
int width(const Op& op) {  // channels, or entries
  if (is_of_entries(op)) return op.n_entries;
  return (op.kind == LOAD || op.kind == GRADIENT_SUMS ? op.out : op.in).channels;
}

bool is_tiled(const Op& op) {
  return op.kind == SPARSE || op.kind == DENSE || op.kind == GRADIENT;
}
int tiles(const Op& op) {
  return pieces(op.count_x, op.tile_width) * pieces(op.count_y, op.tile_height);
}

#if !defined(SPARSE_BF16) && !defined(SPARSE_FP16)
double* own_sums(const Op& op) { return op.sums + omp_get_thread_num() * op.sums_stride; }
#endif

int height(const Op& op) {  // rows that are made, or moves
  if (is_tiled(op) || op.kind == MAX_POOL || op.kind == AVERAGE_POOL) return op.count_y;
  if (op.kind == HALO) return op.n_moves;
  return (op.in.channels ? op.in : op.out).height;
}

// Rows [first, last) of the weights of an operation.
void run_tile(const Op& op, const Place& place, int tile, int first, int last) {
  Element* out = op.out.channels ? start(op.out, place) : nullptr;
  const Element* other = op.other.channels ? start(op.other, place) : nullptr;
  float* gradient = op.gradient ? op.gradient + omp_get_thread_num() * op.gradient_stride : nullptr;
  convolve(op, start(op.in, place), other, out, gradient, tile, first, last);
}

// Channels [c0, c1) of an operation that is not tiled; `rows` of those that make them one by one,
// or moves.
void run_channels(const Op& op, const Place& place, Rows rows, int c0, int c1) {
  Element* in = op.in.channels ? start(op.in, place) : nullptr;
  Element* out = op.out.channels ? start(op.out, place) : nullptr;
  const Element* other = op.other.channels ? start(op.other, place) : nullptr;
  float* tensor = static_cast<float*>(place.tensors ? place.tensors[op.tensor] : nullptr);
  if (op.kind == LOAD || op.kind == STORE)
    tensor += place.item * (op.kind == LOAD ? op.out : op.in).images * op.strides[0];
  switch (op.kind) {
    case LOAD: return load_planes(op, tensor, out, place.images, c0, c1);
    case STORE: return store_planes(op, in, tensor, place.images, c0, c1);
    case HALO: return fill_halo(op, in, rows.first, rows.last, c0, c1);
    case MAX_POOL: return pool<true>(op, in, out, rows, c0, c1);
    case AVERAGE_POOL: return pool<false>(op, in, out, rows, c0, c1);
    case MEAN: return mean(op, in, out, c0, c1);
    case POINTWISE: return pointwise(op, in, other, out, rows, c0, c1);
    case REGRID:
      if (op.in.item >= 0) in = reinterpret_cast<Element*>(first_item(op.in, place));
      return regrid(op, in, out, place.item, place.images, c0, c1);
    case SAMPLE: {
      Element* items = reinterpret_cast<Element*>(first_item(op.out, place));
      return sample<LANES / 2>(op, in, items, place.item, c0, c1);
    }
    case JOIN: return join<LANES / 2>(op, in, out, place.images, c0, c1);
#if !defined(SPARSE_BF16) && !defined(SPARSE_FP16)
    case SUMS: {
      const Existing existing(op.in, place.images);
      double* found = own_sums(op);
      return (existing.all ? sums<true> : sums<false>)(op, existing, in, found, rows, c0, c1);
    }
    case GRADIENT_SUMS: {
      const Existing existing(op.out, place.images);
      double* found = own_sums(op);
      return (existing.all ? gradient_sums<true> : gradient_sums<false>)(op, existing, in, other,
                                                                         out, found, rows, c0, c1);
    }
    case NORM_GRADIENT: {
      const Existing existing(op.in, place.images);
      return (existing.all ? norm_gradient<true> : norm_gradient<false>)(op, existing, in, other,
                                                                         out, rows, c0, c1);
    }
    case NORM: return norm(op, place.images, c0, c1);
    case FINISH_NORM_GRADIENT: return finish_norm_gradient(op, place.images, c0, c1);
    case LARGEST_TAP: return largest_tap(op, in, out, c0, c1);
    case POOL_GRADIENT: return pool_gradient(op, in, other, out, c0, c1);
    case WRITE_VALUES: return write_values(op, tensor, c0, c1);
    case COLLECT_GRADIENT: return collect_gradient(op, tensor, c0, c1);
#endif
  }
}

void run_all(const Op& op, const Place& place) {
  if (is_tiled(op))
    for (int tile = 0; tile < tiles(op); ++tile) run_tile(op, place, tile, 0, op.n_rows);
  else
    run_channels(op, place, {0, height(op)}, 0, width(op));
}

// At least `rows` rows of outputs, counted in rows of tiles, or of pixels, by `done`; those before
// are done first as far as they are needed. What an operation has just written is read from the
// nearest cache.
void advance(const Op* op, int* done, const Place& place, int rows) {
  if (!is_tiled(*op)) {
    if (*done >= rows) return;
    if (op->follows) advance(op - 1, done - 1, place, rows);
    run_channels(*op, place, {*done, rows}, 0, width(*op));
    *done = rows;
    return;
  }
  const int across = pieces(op->count_x, op->tile_width);
  const int down = pieces(op->count_y, op->tile_height);
  for (; op->count_y * *done / down < rows; ++*done) {
    if (op->follows) advance(op - 1, done - 1, place, op->count_y * (*done + 1) / down);
    for (int j = 0; j < across; ++j) run_tile(*op, place, *done * across + j, 0, op->n_rows);
  }
}

// Operations from `begin` to `end`, which treat every channel by itself: all of them for as many
// channels as fit the cache (counting a buffer each time it is named), then for the next.
void run_by_channels(const Op* begin, const Op* end, const Place& place) {
  constexpr int64_t CACHE = 1 << 19;  // bytes
  int64_t bytes = 0;                  // of a channel
  for (const Op* op = begin; op < end; ++op)
    for (const Planes* p : {&op->in, &op->out, &op->other})
      if (p->channels) bytes += (int64_t)p->height * p->width * LANES * sizeof(Element);
  const int all = width(*begin), together = std::max<int64_t>(1, CACHE / bytes);
  for (int c = 0; c < all; c += together)
    for (const Op* op = begin; op < end; ++op)
      run_channels(*op, place, {0, height(*op)}, c, std::min(all, c + together));
}

// Operations from `begin` to `end` by one thread; those that follow one another take turns.
void run_alone(const Op* begin, const Op* end, const Place& place) {
  for (const Op *op = begin, *next; op < end; op = next) {
    for (next = op + 1; next < end && next->follows;) ++next;
    if (next == op + 1) {
      run_all(*op, place);
    } else if (op[1].follows == BY_CHANNELS) {
      run_by_channels(op, next, place);
    } else {
      int step = 1;
      for (const Op* each = op; each < next; ++each) step = std::max(step, each->tile_height);
      std::vector<int> done(next - op);
      for (int all = height(next[-1]), rows = std::min(step, all);; rows = std::min(rows + step, all)) {
        advance(next - 1, &done.back(), place, rows);
        if (rows == all) break;
      }
    }
  }
}

// The row of weights where `part` of `whole` of the work is done: rows differ in their entries.
int row_at(const Op& op, int64_t part, int64_t whole) {
  if (part <= 0) return 0;
  if (part >= whole) return op.n_rows;
  if (const int group = op.kind == DENSE ? DENSE_ROWS : op.n_offsets ? GRADIENT_ROWS : 0)
    return part * pieces(op.n_rows, group) / whole * group;
  const auto work = [&](int row) {
    int64_t sum = 4 * row;  // what a row costs without any, in entries
    for (int block = 0; block < op.blocks; ++block) {
      const int32_t* pointers = op.pointers + (int64_t)block * (op.n_rows + 1);
      sum += pointers[row] - pointers[0];
    }
    return sum;
  };
  const int64_t wanted = work(op.n_rows) * part;
  int first = 0;
  for (int last = op.n_rows; first < last;) {
    const int middle = (first + last) / 2;
    if (work(middle) * whole < wanted)
      first = middle + 1;
    else
      last = middle;
  }
  return first;
}

// A thread's share of an operation. It is always the same one, of convolutions, pools, activations
// and halos from the first rows of pixels to the last, so that what a thread reads is, for the most
// part, what it has written, and in its own cache; of the rest by channels.
void run_share(const Op& op, const Place& place, int thread, int team) {
  const int64_t all = width(op);
  if (is_tiled(op)) {
    const int64_t begin = (int64_t)op.count_y * op.count_x * thread;  // team-ths of positions
    const int64_t end = begin + (int64_t)op.count_y * op.count_x;
    for (int tile = 0; tile < tiles(op); ++tile) {
      const Area area = area_of(op, tile);
      const int64_t mine = (int64_t)(area.y1 - area.y0) * (area.x1 - area.x0) * team;
      const int64_t before =
          ((int64_t)area.y0 * op.count_x + (int64_t)(area.y1 - area.y0) * area.x0) * team;
      const int first = row_at(op, begin - before, mine), last = row_at(op, end - before, mine);
      if (first < last) run_tile(op, place, tile, first, last);
    }
  } else if (op.kind == POINTWISE || op.kind == MAX_POOL || op.kind == AVERAGE_POOL) {
    const int rows = height(op);
    for (int c = 0; c < all; ++c) {  // where rows do not divide, channels take turns in having more
      const int begin = (rows * thread + c % team) / team;
      const int end = (rows * (thread + 1) + c % team) / team;
      if (begin < end) run_channels(op, place, {begin, end}, c, c + 1);
    }
  } else if (op.kind == HALO && op.n_moves && op.offsets[0] != op.offsets[1]) {
    const int64_t n = op.n_moves;  // in rows, too; where the first ones clear pixels they come first
    run_channels(op, place, {(int)(n * thread / team), (int)(n * (thread + 1) / team)}, 0, all);
  } else {
    run_channels(op, place, {0, height(op)}, all * thread / team, all * (thread + 1) / team);
  }
}

}  // namespace

extern "C" {

// Items that all threads can take one each are run by one thread from first to last operation, out
// of its own arena; the threads share the operations of those that are left. The first thread that
// has time takes the next item; where `is_fixed` they take turns, so that sums over items are the
// same in every run.
EXPORT void sparse_run(const Segment* segments, int32_t n_segments, const Op* ops, void* const* tensors,
                int64_t batch, float* own, int64_t own_stride, float* shared, float* saved,
                int32_t threads, int32_t is_fixed) {
  if (is_forked_child) threads = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int team = omp_get_num_threads();
    float* arena = own + omp_get_thread_num() * own_stride;
    for (int s = 0; s < n_segments; ++s) {
      const Segment& segment = segments[s];
      const int64_t images = segment.images ? segment.images : batch;
      const int64_t items = (batch + images - 1) / images, alone = items / team * team;
      const Op *begin = ops + segment.first, *end = begin + segment.count;
      const auto run_item = [&](int64_t item) {
        const Place place = {arena, shared, saved, tensors, item, std::min(images, batch - item * images)};
        run_alone(begin, end, place);
      };
      if (is_fixed) {
#pragma omp for schedule(static, 1)
        for (int64_t item = 0; item < alone; ++item) run_item(item);
      } else {
#pragma omp for schedule(dynamic, 1)
        for (int64_t item = 0; item < alone; ++item) run_item(item);
      }
      for (int64_t item = alone; item < items; ++item) {
        const Place place = {own, shared, saved, tensors, item, std::min(images, batch - item * images)};
        for (const Op* op = begin; op < end; ++op) {
          run_share(*op, place, omp_get_thread_num(), team);
#pragma omp barrier
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
  const int32_t all[] = {ABI,   sizeof(Planes), sizeof(Op), sizeof(Segment), sizeof(Entry),
                         LANES, WIDTH,          MAX_TILE,   MAX_WIDTH,       MAX_HEIGHT,
                         DENSE_ROWS, DENSE_TILE, GRADIENT_TILE};
  for (const int32_t fact : all) *facts++ = fact;
}

// How often an operation met numbers beyond float16 since the library was loaded; never less.
EXPORT int64_t sparse_overflows() {
#if defined(SPARSE_FP16)
  return overflows.load(std::memory_order_relaxed);
#else
  return 0;
#endif
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
  unsigned a, b, c, d;  // asked for directly: compilers differ in the names that they know
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return 2;  // AVX512-BF16
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 23 & 1) ? 4 : 3;  // AVX512-FP16
#else
  return 0;
#endif
}
}
