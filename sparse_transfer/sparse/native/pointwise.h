// Activations, pools and other operations that treat every channel by itself.
#pragma once
#include <cmath>

#include "layout.h"

namespace sparse {

enum Activation : int32_t { NONE, RELU, RELU6, HARD_SWISH, HARD_SIGMOID, SILU, SIGMOID };

// exp on [-87, 88] to 2 ulp: 2^n times a polynomial on half of ln 2 (Cephes' coefficients).
static inline V exponential(V x) {
  x = at_most(at_least(x, splat(-87.f)), splat(88.f));
  const V scaled = x * 1.44269504088896341f;
  const I n = __builtin_convertvector(scaled + (scaled < 0.f ? splat(-.5f) : splat(.5f)), I);
  const V whole = __builtin_convertvector(n, V);
  const V r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  V p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  return p * (V)((n + 127) << 23);
}

static inline V activate(V v, int kind) {
  const V zero = {}, six = splat(6.f);
  switch (kind) {
    case RELU: return at_least(v, zero);
    case RELU6: return at_most(at_least(v, zero), six);
    case HARD_SWISH: return v * at_most(at_least(v + 3.f, zero), six) / 6.f;
    case HARD_SIGMOID: return at_most(at_least(v + 3.f, zero), six) / 6.f;
    case SILU: return v / (1.f + exponential(-v));
    case SIGMOID: return 1.f / (1.f + exponential(-v));
    default: return v;
  }
}

struct Rows {  // [first, last) of a block
  int first, last;
};

// Sums and maxima over windows; the halo holds what counts outside the image. Means and maxima of
// what is finite are finite. In float16 a window of nothing but the halo, which lies outside the
// image, becomes zero, lest its -inf look like an overflow in a layer that follows.
template <bool IS_MAX>
static void pool(const Op& op, const Element* in, Element* out, Rows rows, int c0, int c1) {
  const float share = 1.f / (op.kernel_y * op.kernel_x);
  for (int c = c0; c < c1; ++c)
    for (int y = rows.first; y < rows.last; ++y)
      for (int x = 0; x < op.count_x; ++x) {
        const Element* corner =
            in + position(op.in, c, y * op.step_y - op.pad_y, x * op.step_x - op.pad_x) * LANES;
        Element* to = out + position(op.out, c, y, x) * LANES;
        for (int k = 0; k < PARTS; ++k) {
          V sum = load(corner + k * WIDTH);
          for (int i = 0; i < op.kernel_y; ++i)
            for (int j = i ? 0 : 1; j < op.kernel_x; ++j) {
              const V v = load(corner + ((int64_t)i * op.in.pitch + j) * LANES + k * WIDTH);
              if (IS_MAX)
                sum = v < sum ? sum : v;
              else
                sum += v;
            }
#if defined(SPARSE_FP16)
          if (IS_MAX) sum = sum == -INFINITY ? V{} : sum;
#endif
          store(to + k * WIDTH, IS_MAX ? sum : sum * share);
        }
      }
}

// The mean of every image, in all of its lanes; pixels outside the image are zero.
static void mean(const Op& op, const Element* in, Element* out, int c0, int c1) {
  const Planes& p = op.in;
  const int blocks = p.rows * p.columns;
  const float share = 1.f / ((float)p.image_height * p.image_width);
  for (int c = c0; c < c1; ++c) {
    V sums[PARTS] = {};
    for (int y = 0; y < p.height; ++y)
      for (int x = 0; x < p.width; ++x)
        for (int k = 0; k < PARTS; ++k)
          sums[k] += load(in + position(p, c, y, x) * LANES + k * WIDTH);
    float lanes[LANES];
    std::memcpy(lanes, sums, sizeof lanes);
    Element* to = out + position(op.out, c, 0, 0) * LANES;
    for (int first = 0; first < LANES; first += blocks) {
      float sum = 0.f;
      for (int l = 0; l < blocks; ++l) sum += lanes[first + l];
      for (int l = 0; l < blocks; ++l) to[first + l] = element(sum * share);
    }
  }
}

// Row by row of all channels, as they lie. ADDS: `other` is added; CUTS: below zero it is zero.
template <bool ADDS, bool CUTS>
static void linear(const Op& op, const Element* in, const Element* other, Element* out, Rows rows,
                   int c0, int c1) {
  const Planes& p = op.in;
  Overflow overflow;
  const V zero = {};
  for (int y = rows.first; y < rows.last; ++y)
    for (int c = c0; c < c1; ++c) {
      const V scale = splat(op.scale ? op.scale[c] : 1.f), bias = splat(op.bias ? op.bias[c] : 0.f);
      const Element* from = in + position(p, c, y, 0) * LANES;
      const Element* second = ADDS ? other + position(op.other, c, y, 0) * LANES : nullptr;
      Element* to = out + position(op.out, c, y, 0) * LANES;
      for (int i = 0; i < p.width * PARTS; ++i) {
        V v = load(from + i * WIDTH) * scale + bias;
        if (ADDS) v += load(second + i * WIDTH);
        store(to + i * WIDTH, CUTS ? at_least(v, zero) : v, overflow);
      }
    }
  overflow.count();
}

static void pointwise(const Op& op, const Element* in, const Element* other, Element* out,
                      Rows rows, int c0, int c1) {
  const Planes& p = op.in;
  if (!op.gate && op.activation <= RELU) {
    if (op.activation == RELU)
      return (other ? linear<true, true> : linear<false, true>)(op, in, other, out, rows, c0, c1);
    return (other ? linear<true, false> : linear<false, false>)(op, in, other, out, rows, c0, c1);
  }
  Overflow overflow;
  for (int c = c0; c < c1; ++c) {
    const V scale = splat(op.scale ? op.scale[c] : 1.f), bias = splat(op.bias ? op.bias[c] : 0.f);
    for (int y = rows.first; y < rows.last; ++y) {
      const Element* from = in + position(p, c, y, 0) * LANES;
      Element* to = out + position(op.out, c, y, 0) * LANES;
      const Element* second =
          other ? other + position(op.other, c, op.gate ? 0 : y, 0) * LANES : nullptr;
      for (int i = 0; i < p.width * PARTS; ++i) {
        V v = load(from + i * WIDTH) * scale + bias;
        if (second && !op.gate) v += load(second + i * WIDTH);
        v = activate(v, op.activation);
        if (second && op.gate) v *= load(second + i % PARTS * WIDTH);
        store(to + i * WIDTH, v, overflow);
      }
    }
  }
  overflow.count();
}

}  // namespace sparse
