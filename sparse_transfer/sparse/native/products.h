// Sums of products, the one thing that differs by more than a type between the libraries. A
// position has some ACCUMULATORS; after every CHUNK products they are added to floats (0: they are
// floats, and stay).
#pragma once
#include "program.h"
#include "vectors.h"

namespace sparse {

#if defined(SPARSE_BF16)
// One instruction multiplies pairs of bf16 and adds both products to a float. The pair is made of
// the same lane of two inputs, whichever they are, by interleaving them; so the sums of a position
// are those of its even and of its odd groups of four lanes.
typedef __m512bh Factors;
typedef V Sum;
constexpr int ACCUMULATORS = PARTS, CHUNK = 0;

template <int ODD, std::size_t... I>
static inline Line interleaved(Line a, Line b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (I / 8 * 8 + ODD * 4 + I % 8 / 2 + I % 2 * LANES)...);
}
template <int ODD>
static inline Line interleaved(Line a, Line b) {
  return interleaved<ODD>(a, b, std::make_index_sequence<LANES>{});
}
static inline Line line(const Element* p) { return *reinterpret_cast<const Line*>(p); }

static inline void get(const Element* p, V* sums) {  // a float's upper half is its bf16
  sums[0] = (V)interleaved<0>(Line{}, line(p)), sums[1] = (V)interleaved<1>(Line{}, line(p));
}
static inline void put(Element* p, const V* sums) {  // rounded to the nearest, ties to even
  typedef int64_t Groups __attribute__((vector_size(64)));
  const Groups both = (Groups)_mm512_cvtne2ps_pbh((__m512)sums[1], (__m512)sums[0]);
  *reinterpret_cast<Line*>(p) =
      (Line)__builtin_shufflevector(both, both, 0, 4, 1, 5, 2, 6, 3, 7);
}
static inline void read(const Element* const* in, int64_t at, Factors* factors) {
  const Line first = line(in[0] + at), second = line(in[1] + at);
  factors[0] = (Factors)interleaved<0>(first, second);
  factors[1] = (Factors)interleaved<1>(first, second);
}
static inline Factors everywhere(Weights w) { return (Factors)_mm512_set1_epi32(w); }
static inline V add_product(V sum, Factors weights, Factors inputs) {
  return (V)_mm512_dpbf16_ps((__m512)sum, inputs, weights);
}
#else
static inline void get(const Element* p, V* sums) {
  UNROLL
  for (int k = 0; k < PARTS; ++k) sums[k] = load(p + k * WIDTH);
}
static inline void put(Element* p, const V* sums) {
  UNROLL
  for (int k = 0; k < PARTS; ++k) store(p + k * WIDTH, sums[k]);
}
#if defined(SPARSE_FP16)
// Twice as many products in a cycle as in floats. Sums of 64 of them lose about as much again as
// the rounding of what is multiplied; longer ones would lose more.
typedef _Float16 Half __attribute__((vector_size(64), may_alias));
typedef Half Factors, Sum;
constexpr int ACCUMULATORS = 1, CHUNK = 64;

static inline void read(const Element* const* in, int64_t at, Factors* factors) {
  factors[0] = *reinterpret_cast<const Half*>(in[0] + at);
}
static inline Factors everywhere(Weights w) {
  typedef Weights Words __attribute__((vector_size(64)));
  return (Half)(w - Words{});
}
static inline void empty(const Sum* sums, V* floats) {
  floats[0] += (V)_mm512_cvtph_ps(_mm512_castsi512_si256((__m512i)sums[0]));
  floats[1] += (V)_mm512_cvtph_ps(_mm512_extracti64x4_epi64((__m512i)sums[0], 1));
}
#else
typedef V Factors, Sum;
constexpr int ACCUMULATORS = PARTS, CHUNK = 0;

static inline void read(const Element* const* in, int64_t at, Factors* factors) {
  get(in[0] + at, factors);
}
static inline Factors everywhere(Weights w) { return splat(w); }
#endif
static inline Sum add_product(Sum sum, Factors weight, Factors input) {
  return sum + weight * input;
}
#endif

}  // namespace sparse
