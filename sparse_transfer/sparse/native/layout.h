// Between tensors and planes, between two cuts into lanes, and the halo around blocks.
#pragma once
#include <algorithm>
#include <cstring>

#include "program.h"
#include "vectors.h"

namespace sparse {

static inline int64_t position(const Planes& p, int c, int y, int x) {
  return (int64_t)c * p.size + (int64_t)(p.top + y) * p.pitch + p.left + x;
}

struct Lane {
  int image, y, x;
};
static inline Lane lane_of(const Planes& p, int lane) {  // and the first pixel of its block
  const int block = lane % (p.rows * p.columns);
  return {lane / (p.rows * p.columns), block / p.columns * p.height, block % p.columns * p.width};
}

#if defined(__AVX512F__)
template <int D, std::size_t... L>
static inline void swap_halves(V& a, V& b, std::index_sequence<L...>) {
  const V low = __builtin_shufflevector(a, b, ((L & D) ? WIDTH + (L ^ D) : L)...);
  b = __builtin_shufflevector(a, b, ((L & D) ? WIDTH + L : (L ^ D))...);
  a = low;
}
template <int D>
static inline void swap_halves(V* v) {
  UNROLL
  for (int i = 0; i < 16; ++i)
    if (!(i & D)) swap_halves<D>(v[i], v[i | D], std::make_index_sequence<16>{});
}
static inline void transpose(V* v) {  // 16 x 16
  swap_halves<1>(v);
  swap_halves<2>(v);
  swap_halves<4>(v);
  swap_halves<8>(v);
}
typedef float Loose __attribute__((vector_size(64), aligned(4), may_alias));
#endif

// Channels [c0, c1) of the item's images; lanes outside the batch or the image become zero.
static void load_planes(const Op& op, const float* tensor, float* out, int images, int c0, int c1) {
  const Planes& p = op.out;
  const int64_t* s = op.strides;
  for (int c = c0; c < c1; ++c)
    for (int y = 0; y < p.height; ++y) {
      float* row = out + position(p, c, y, 0) * LANES;
      const float* source[LANES];
      int width[LANES], least = p.width;  // pixels that exist
      for (int l = 0; l < LANES; ++l) {
        const Lane lane = lane_of(p, l);
        const bool exists = lane.image < images && lane.y + y < p.image_height;
        width[l] = exists ? std::clamp(p.image_width - lane.x, 0, (int)p.width) : 0;
        source[l] = width[l] ? tensor + lane.image * s[0] + c * s[1] + (lane.y + y) * s[2] +
                                   lane.x * s[3]
                             : tensor;
        least = std::min(least, width[l]);
      }
      int x = 0;
#if defined(__AVX512F__)
      if (s[3] == 1)
        for (; x + 16 <= least; x += 16) {
          V v[16];
          UNROLL
          for (int l = 0; l < 16; ++l) v[l] = *reinterpret_cast<const Loose*>(source[l] + x);
          transpose(v);
          UNROLL
          for (int i = 0; i < 16; ++i) store(row + (x + i) * LANES, v[i]);
        }
#endif
      for (int l = 0; l < LANES; ++l) {
        int i = x;
        for (; i < width[l]; ++i) row[i * LANES + l] = source[l][i * s[3]];
        for (; i < p.width; ++i) row[i * LANES + l] = 0.f;
      }
    }
}

static void store_planes(const Op& op, const float* in, float* tensor, int images, int c0, int c1) {
  const Planes& p = op.in;
  const int64_t* s = op.strides;
  for (int c = c0; c < c1; ++c)
    for (int y = 0; y < p.height; ++y) {
      const float* row = in + position(p, c, y, 0) * LANES;
      for (int l = 0; l < LANES; ++l) {
        const Lane lane = lane_of(p, l);
        if (lane.image >= images || lane.y + y >= p.image_height) continue;
        float* to = tensor + lane.image * s[0] + c * s[1] + (lane.y + y) * s[2] + lane.x * s[3];
        const int width = std::min((int)p.width, p.image_width - lane.x);
        for (int x = 0; x < width; ++x) to[x * s[3]] = row[x * LANES + l];
      }
    }
}

static inline void permute(const float* from, float* to, const int32_t* lanes, float fill) {
  float result[LANES];  // from and to may be the same
  for (int l = 0; l < LANES; ++l) result[l] = lanes[l] < 0 ? fill : from[lanes[l]];
  std::memcpy(to, result, sizeof result);
}

#if defined(__AVX512F__) && !defined(__clang__)
static void fill_halo(const Op& op, float* in, int c0, int c1) {
  const V fill = splat(op.fill);
  for (int c = c0; c < c1; ++c) {
    float* plane = in + (int64_t)c * op.in.size * LANES;
    for (int m = 0; m < op.n_moves; ++m) {
      const int32_t* move = op.offsets + 3 * m;
      const I lanes = *reinterpret_cast<const I*>(op.permutations + move[2] * LANES);
      const V taken = __builtin_shuffle(load(plane + (int64_t)move[0] * LANES), lanes & 15);
      store(plane + (int64_t)move[1] * LANES, lanes < 0 ? fill : taken);
    }
  }
}
#else
static void fill_halo(const Op& op, float* in, int c0, int c1) {
  for (int c = c0; c < c1; ++c) {
    float* plane = in + (int64_t)c * op.in.size * LANES;
    for (int m = 0; m < op.n_moves; ++m) {
      const int32_t* move = op.offsets + 3 * m;
      permute(plane + (int64_t)move[0] * LANES, plane + (int64_t)move[1] * LANES,
              op.permutations + move[2] * LANES, op.fill);
    }
  }
}
#endif

// `in` is the first item of the source; with another number of images per item it must lie in the
// arena of the batch. `item` counts items of the destination, `images` those of them that exist.
static void regrid(const Op& op, const float* in, float* out, int item, int images, int c0, int c1) {
  const Planes &from = op.in, &to = op.out;
  for (int l = 0; l < LANES; ++l) {
    const Lane lane = lane_of(to, l);
    const int image = item * to.images + lane.image;
    const float* source = in;
    int first = lane.image * from.rows * from.columns;
    if (from.item >= 0) {
      source += image / from.images * from.item;
      first = image % from.images * from.rows * from.columns;
    }
    const int height = lane.image < images ? std::clamp(to.image_height - lane.y, 0, (int)to.height) : 0;
    const int width = std::clamp(to.image_width - lane.x, 0, (int)to.width);
    for (int c = c0; c < c1; ++c)
      for (int y = 0; y < to.height; ++y) {
        float* row = out + position(to, c, y, 0) * LANES + l;
        int x = 0;
        if (y < height) {
          const int block_y = (lane.y + y) / from.height;
          while (x < width) {
            const int block_x = (lane.x + x) / from.width, inside = (lane.x + x) % from.width;
            const int run = std::min(width - x, from.width - inside);
            const float* at = source + first + block_y * from.columns + block_x +
                              position(from, c, (lane.y + y) % from.height, inside) * LANES;
            for (int i = 0; i < run; ++i) row[(x + i) * LANES] = at[i * LANES];
            x += run;
          }
        }
        for (; x < to.width; ++x) row[x * LANES] = 0.f;
      }
  }
}

}  // namespace sparse
