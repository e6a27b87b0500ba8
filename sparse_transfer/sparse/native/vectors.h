// Vectors of the compiler: one length per instruction level. A position is a cache line of 64 bytes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(SPARSE_BF16) || defined(SPARSE_FP16)
// Only for what the compiler has no vectors for, or takes apart into elements (g++ 12 does so with
// conversions of float16): rounding, widening, dot products.
#include <immintrin.h>
#endif

namespace sparse {

// What a plane holds: floats, or in libraries of their own bfloat16 or float16, of which twice as
// many share a position. Arithmetic is in floats, but for the products of products.h.
#if defined(SPARSE_BF16)
typedef uint16_t Element;
#elif defined(SPARSE_FP16)
typedef _Float16 Element;
#else
typedef float Element;
#endif
constexpr int LANES = 64 / sizeof(Element);  // elements of a position

// A vector longer than the registers is spilled by the compiler, so the length is the target's.
#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#if defined(SPARSE_BF16)
constexpr int MAX_TILE = 12;  // positions of a tile whose sums stay in registers
#else
constexpr int MAX_TILE = 28;
#endif
#elif defined(__AVX__)
constexpr int WIDTH = 8;
constexpr int MAX_TILE = 6;
#elif defined(__aarch64__)
constexpr int WIDTH = 4;
constexpr int MAX_TILE = 6;
#else
constexpr int WIDTH = 4;
constexpr int MAX_TILE = 3;
#endif
constexpr int PARTS = LANES / WIDTH;  // vectors of a position

typedef float V __attribute__((vector_size(WIDTH * 4), may_alias));
typedef int32_t I __attribute__((vector_size(WIDTH * 4), may_alias));

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

static inline V load(const float* p) { return *reinterpret_cast<const V*>(p); }
static inline void store(float* p, V v) { *reinterpret_cast<V*>(p) = v; }
#if defined(SPARSE_BF16)
static inline V load(const uint16_t* p) {
  typedef uint16_t Half __attribute__((vector_size(WIDTH * 2), may_alias));
  return (V)(__builtin_convertvector(*reinterpret_cast<const Half*>(p), I) << 16);
}
static inline void store(uint16_t* p, V v) {  // rounds to the nearest, ties to even
  _mm256_store_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh((__m512)v));
}
static inline uint16_t element(float x) {
  V v = {};
  v[0] = x;
  return ((__v16hi)_mm512_cvtneps_pbh((__m512)v))[0];
}
static inline float number(uint16_t e) {
  union { uint32_t bits; float x; } both = {(uint32_t)e << 16};
  return both.x;
}
#elif defined(SPARSE_FP16)
static inline V load(const _Float16* p) {
  return (V)_mm512_cvtph_ps(*reinterpret_cast<const __m256i*>(p));
}
static inline void store(_Float16* p, V v) {  // rounds to the nearest, ties to even
  *reinterpret_cast<__m256i*>(p) = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
}
static inline _Float16 element(float x) { return (_Float16)x; }
static inline float number(_Float16 e) { return (float)e; }
#else
static inline float element(float x) { return x; }
static inline float number(float e) { return e; }
#endif
static inline V splat(float x) { return x - V{}; }  // x + 0 would turn -0 into 0, and cost an addition
// A pointer whose origin the compiler forgets, lest it spread one address over many registers.
static inline const Element* apart(const Element* p) {
  asm("" : "+r"(p));
  return p;
}
// A NaN in `v` stays (a comparison with NaN is false).
static inline V at_least(V v, V low) { return v < low ? low : v; }
static inline V at_most(V v, V high) { return v > high ? high : v; }

// A whole position as integers of the size of an element, to move lanes.
typedef std::conditional<sizeof(Element) == 4, int32_t, int16_t>::type Index;
typedef Index Line __attribute__((vector_size(64), may_alias));

// Lane l: the sum of a's lanes l and l^D where bit D of l is clear, else of b's.
template <int D, std::size_t... L>
static inline V pair_sums(V a, V b, std::index_sequence<L...>) {
  return __builtin_shufflevector(a, b, ((L & D) ? WIDTH + L : L)...) +
         __builtin_shufflevector(a, b, ((L & D) ? WIDTH + (L ^ D) : (L ^ D))...);
}
template <int D>
static inline V pair_sums(V a, V b) {
  return pair_sums<D>(a, b, std::make_index_sequence<WIDTH>{});
}

// out[i] += sum over the lanes of c[i], for i < count <= 4.
static inline void add_sums(const V* c, int count, float* out) {
  V t = pair_sums<2>(pair_sums<1>(c[0], c[1]), pair_sums<1>(c[2], c[3]));
  float sums[4] = {t[0], t[1], t[2], t[3]};
  for (int l = 4; l < WIDTH; ++l) sums[l & 3] += t[l];
  for (int i = 0; i < count; ++i) out[i] += sums[i];
}

}  // namespace sparse
