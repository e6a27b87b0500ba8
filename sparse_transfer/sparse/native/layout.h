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

constexpr int PER_FLOAT = sizeof(float) / sizeof(Element);  // arenas are measured in floats

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

// What exists of a lane's block, and where its first pixel lies in the tensor.
struct Part {
  int64_t at;
  int height, width;
};
struct Parts {
  Part of[LANES];
  int exist[LANES], count = 0;  // lanes of which anything exists

  Parts(const Planes& p, const int64_t* strides, int images) {
    for (int l = 0; l < LANES; ++l) {
      const Lane lane = lane_of(p, l);
      of[l] = {lane.image * strides[0] + lane.y * strides[2] + lane.x * strides[3],
               lane.image < images ? std::clamp(p.image_height - lane.y, 0, (int)p.height) : 0,
               std::clamp(p.image_width - lane.x, 0, (int)p.width)};
      if (of[l].height && of[l].width) exist[count++] = l;
    }
  }
};

// Channels [c0, c1) of the item's images; lanes outside the batch or the image become zero.
static void load_planes(const Op& op, const float* tensor, Element* out, int images, int c0, int c1) {
  const Planes& p = op.out;
  const int64_t* s = op.strides;
  const Parts parts(p, s, images);
  Overflow overflow;
  for (int c = c0; c < c1; ++c)
    for (int y = 0; y < p.height; ++y) {
      Element* row = out + position(p, c, y, 0) * LANES;
      const float* source[LANES];
      int width[LANES];  // pixels that exist
      for (int l = 0; l < LANES; ++l) {
        const Part& part = parts.of[l];
        width[l] = y < part.height ? part.width : 0;
        source[l] = tensor + (width[l] ? part.at + c * s[1] + y * s[2] : 0);
      }
#if defined(__AVX512F__)
      if (s[3] == 1) {
        for (int first = 0; first < LANES; first += 16)
          for (int x = 0; x < p.width; x += 16) {
            V v[16] = {};
            for (int l = 0; l < 16; ++l) {
              const int count = std::min(16, width[first + l] - x);
              if (count == 16)
                v[l] = *reinterpret_cast<const Loose*>(source[first + l] + x);
              else if (count > 0)
                std::memcpy(&v[l], source[first + l] + x, count * sizeof(float));
            }
            transpose(v);
            for (int i = 0; i < std::min(16, p.width - x); ++i) {
              overflow.see(v[i]);
              store(row + (x + i) * LANES + first, v[i], overflow);
            }
          }
        continue;
      }
#endif
      for (int l = 0; l < LANES; ++l) {
        int i = 0;
        for (; i < width[l]; ++i) {
          row[i * LANES + l] = element(source[l][i * s[3]]);
          overflow.see(row[i * LANES + l]);
        }
        for (; i < p.width; ++i) row[i * LANES + l] = 0;
      }
    }
  overflow.count();
}

static void store_planes(const Op& op, const Element* in, float* tensor, int images, int c0, int c1) {
  const Planes& p = op.in;
  const int64_t* s = op.strides;
  const Parts parts(p, s, images);
  for (int c = c0; c < c1; ++c)
    for (int y = 0; y < p.height; ++y) {
      const Element* row = in + position(p, c, y, 0) * LANES;
      float* to = tensor + c * s[1] + y * s[2];
#if defined(__AVX512F__)
      if (s[3] == 1 && p.width > 4) {  // or they are not worth the transposition
        for (int first = 0; first < LANES; first += 16)
          for (int x = 0; x < p.width; x += 16) {
            V v[16] = {};
            for (int i = 0; i < std::min(16, p.width - x); ++i)
              v[i] = load(row + (x + i) * LANES + first);
            transpose(v);
            for (int l = 0; l < 16; ++l) {
              const Part& part = parts.of[first + l];
              const int count = y < part.height ? std::min(16, part.width - x) : 0;
              if (count == 16)
                *reinterpret_cast<Loose*>(to + part.at + x) = v[l];
              else if (count > 0)
                std::memcpy(to + part.at + x, &v[l], count * sizeof(float));
            }
          }
        continue;
      }
#endif
      for (int i = 0; i < parts.count; ++i) {
        const int l = parts.exist[i];
        const Part& part = parts.of[l];
        for (int x = 0; y < part.height && x < part.width; ++x)
          to[part.at + x * s[3]] = number(row[x * LANES + l]);
      }
    }
}

// Moves [m0, m1).
static void fill_halo(const Op& op, Element* in, int m0, int m1, int c0, int c1) {
  const Element fill = element(op.fill);
  for (int c = c0; c < c1; ++c) {
    Element* plane = in + (int64_t)c * op.in.size * LANES;
    for (int m = m0; m < m1; ++m) {
      const int32_t* move = op.offsets + 3 * m;
      const Element* from = plane + (int64_t)move[0] * LANES;
      Element* to = plane + (int64_t)move[1] * LANES;
      const Index* lanes = static_cast<const Index*>(op.permutations) + move[2] * LANES;
#if defined(__AVX512F__) && !defined(__clang__)
      const Line take = *reinterpret_cast<const Line*>(lanes);
      Index bits;
      std::memcpy(&bits, &fill, sizeof bits);
      const Line taken = __builtin_shuffle(*reinterpret_cast<const Line*>(from), take & (LANES - 1));
      *reinterpret_cast<Line*>(to) = take < 0 ? bits - Line{} : taken;
#else
      Element result[LANES];  // from and to may be the same
      for (int l = 0; l < LANES; ++l) result[l] = lanes[l] < 0 ? fill : from[lanes[l]];
      std::memcpy(to, result, sizeof result);
#endif
    }
  }
}

#if defined(__AVX512F__) && !defined(__clang__)
// Where a block of the destination is a grid of whole blocks of the source, and an item has the
// images of whole items: all lanes of a vector come from the same place of a few vectors.
static bool regrid_blocks(const Op& op, const Element* in, Element* out, int item, int images, int c0,
                          int c1) {
  const Planes &from = op.in, &to = op.out;
  const int down = to.height / from.height, across = to.width / from.width;
  const int sources = to.images / from.images;
  if (op.step_y > 1 || op.step_x > 1) return false;
  if (from.item < 0 || to.height % from.height || to.width % from.width ||
      to.images % from.images || from.rows != to.rows * down || from.columns != to.columns * across)
    return false;
  alignas(64) Index lanes[LANES][LANES], of_source[LANES];
  for (int l = 0; l < LANES; ++l) {
    const int image = l / (to.rows * to.columns), block = l % (to.rows * to.columns);
    of_source[l] = image / from.images;
    for (int q = 0; q < down * across; ++q)
      lanes[q][l] = (image % from.images * from.rows + block / to.columns * down + q / across) *
                        from.columns + block % to.columns * across + q % across;
  }
  const Line owner = *reinterpret_cast<const Line*>(of_source);
  const int exist = std::min(sources, (images + from.images - 1) / from.images);
  in += (int64_t)item * sources * from.item * PER_FLOAT;
  for (int c = c0; c < c1; ++c)
    for (int y = 0; y < from.height; ++y)
      for (int x = 0; x < from.width; ++x) {
        Line v[LANES];
        for (int s = 0; s < exist; ++s)
          v[s] = *reinterpret_cast<const Line*>(in + s * from.item * PER_FLOAT +
                                                position(from, c, y, x) * LANES);
        for (int q = 0; q < down * across; ++q) {
          const Line take = *reinterpret_cast<const Line*>(lanes[q]);
          Line result = {};
          for (int s = 0; s < exist; ++s)
            result = owner == (Index)s ? __builtin_shuffle(v[s], take) : result;
          *reinterpret_cast<Line*>(out + LANES * position(to, c, q / across * from.height + y,
                                                          q % across * from.width + x)) = result;
        }
      }
  return true;
}

// The way back: a block of the source is a grid of whole blocks of the destination.
static bool regrid_parts(const Op& op, const Element* in, Element* out, int item, int images, int c0,
                         int c1) {
  const Planes &from = op.in, &to = op.out;
  const int down = from.height / to.height, across = from.width / to.width, parts = down * across;
  if (op.step_y > 1 || op.step_x > 1) return false;
  if (from.item < 0 || from.height % to.height || from.width % to.width ||
      from.images % to.images || to.rows != from.rows * down || to.columns != from.columns * across)
    return false;
  alignas(64) Index take[LANES], of_part[LANES];
  const int first = item * to.images % from.images;
  for (int l = 0; l < LANES; ++l) {
    const int image = l / (to.rows * to.columns), block = l % (to.rows * to.columns);
    const int row = block / to.columns, column = block % to.columns;
    of_part[l] = image < images ? row % down * across + column % across : -1;
    take[l] = ((first + image) * from.rows + row / down) * from.columns + column / across;
  }
  const Line owner = *reinterpret_cast<const Line*>(of_part);
  const Line lanes = *reinterpret_cast<const Line*>(take);
  in += (int64_t)item * to.images / from.images * from.item * PER_FLOAT;
  for (int y = 0; y < to.height; ++y)
    for (int c = c0; c < c1; ++c)
      for (int x = 0; x < to.width; ++x) {
        Line result = {};
        for (int q = 0; q < parts; ++q) {
          const int64_t at = position(from, c, q / across * to.height + y, q % across * to.width + x);
          const Line v = *reinterpret_cast<const Line*>(in + at * LANES);
          result = owner == (Index)q ? __builtin_shuffle(v, lanes) : result;
        }
        *reinterpret_cast<Line*>(out + position(to, c, y, x) * LANES) = result;
      }
  return true;
}
#else
static bool regrid_blocks(const Op&, const Element*, Element*, int, int, int, int) { return false; }
static bool regrid_parts(const Op&, const Element*, Element*, int, int, int, int) { return false; }
#endif

// A grid of whole blocks of the source becomes a block of the destination, of which every step-th
// pixel is kept. An item of the source has N lanes of the destination's, and they are written
// without gaps: N elements for each position, one item after the other. `join` makes vectors of them.
template <int N>
static void sample_lanes(const Op& op, const Element* in, Element* out, int64_t item, int c0, int c1) {
  const Planes &from = op.in, &to = op.out;
  const int down = to.height * op.step_y / from.height, across = to.width * op.step_x / from.width;
  const int64_t positions = (int64_t)to.height * to.pitch;
  const int sources = LANES / N;
  out += item / sources * to.item * PER_FLOAT + item % sources * positions * N;
  for (int q = 0; q < down * across; ++q) {
    const int q_y = q / across, q_x = q % across;
    alignas(64) Index lanes[LANES] = {};
    for (int l = 0; l < N; ++l) {
      const int image = l / (to.rows * to.columns), block = l % (to.rows * to.columns);
      lanes[l] = (image * from.rows + block / to.columns * down + q_y) * from.columns +
                 block % to.columns * across + q_x;
    }
    const int y0 = (q_y * from.height + op.step_y - 1) / op.step_y;
    const int x0 = (q_x * from.width + op.step_x - 1) / op.step_x;
    for (int y = y0; y * op.step_y < (q_y + 1) * from.height; ++y)
      for (int c = c0; c < c1; ++c) {
        const Element* at = in + position(from, c, y * op.step_y - q_y * from.height,
                                        x0 * op.step_x - q_x * from.width) * LANES;
        Element* row = out + position(to, c, y, x0) * N;
        for (int x = x0; x * op.step_x < (q_x + 1) * from.width; ++x) {
#if defined(__AVX512F__) && !defined(__clang__)
          const Line taken = __builtin_shuffle(*reinterpret_cast<const Line*>(at),
                                               *reinterpret_cast<const Line*>(lanes));
          std::memcpy(row, &taken, N * sizeof(Element));
#else
          for (int l = 0; l < N; ++l) row[l] = at[lanes[l]];
#endif
          at += op.step_x * LANES;
          row += N;
        }
      }
  }
}

// Lanes of images that do not exist become zero.
template <int N>
static void join_lanes(const Op& op, const Element* in, Element* out, int images, int c0, int c1) {
  const Planes &from = op.in, &to = op.out;
  const int64_t positions = (int64_t)from.height * from.pitch;
  const int sources = LANES / N, each = to.images / sources;
  const int exist = (images + each - 1) / each;
  for (int y = 0; y < to.height; ++y)
    for (int c = c0; c < c1; ++c) {
      const Element* at = in + position(from, c, y, 0) * N;
      Element* row = out + position(to, c, y, 0) * LANES;
      for (int x = 0; x < to.width; ++x, at += N, row += LANES)
        for (int s = 0; s < sources; ++s) {
          if (s < exist)
            std::memcpy(row + s * N, at + s * positions * N, N * sizeof(Element));
          else
            std::memset(row + s * N, 0, N * sizeof(Element));
        }
    }
}

template <int N>
static void sample(const Op& op, const Element* in, Element* out, int64_t item, int c0, int c1) {
  if (op.blocks * N == LANES)
    sample_lanes<N>(op, in, out, item, c0, c1);
  else if constexpr (N > 1)
    sample<N / 2>(op, in, out, item, c0, c1);
}
template <int N>
static void join(const Op& op, const Element* in, Element* out, int images, int c0, int c1) {
  if (op.blocks * N == LANES)
    join_lanes<N>(op, in, out, images, c0, c1);
  else if constexpr (N > 1)
    join<N / 2>(op, in, out, images, c0, c1);
}

// One position of a channel from those of another cut: `from` are the elements that the lanes take,
// of channel 0, or null where there is no pixel.
static void gather(const Element* const (&from)[LANES], int64_t from_plane, Element* to,
                   int64_t to_plane, int c0, int c1) {
#if defined(__AVX512F__) && !defined(__clang__)
  alignas(64) Index takes[LANES][LANES];  // per vector of the source: the lane of it, or -1
  const Element* vectors[LANES];
  int n = 0;
  for (int l = 0; l < LANES; ++l) {
    if (!from[l]) continue;
    const uintptr_t address = reinterpret_cast<uintptr_t>(from[l]);
    const Element* vector = from[l] - address % 64 / sizeof(Element);  // they are aligned
    int i = 0;
    while (i < n && vectors[i] != vector) ++i;
    if (i == n) {
      vectors[n++] = vector;
      *reinterpret_cast<Line*>(takes[i]) = Line{} - 1;
    }
    takes[i][l] = address % 64 / sizeof(Element);
  }
  for (int c = c0; c < c1; ++c) {
    Line result = {};
    for (int i = 0; i < n; ++i) {
      const Line take = *reinterpret_cast<const Line*>(takes[i]);
      const Line all = *reinterpret_cast<const Line*>(vectors[i] + c * from_plane);
      result = take < 0 ? result : __builtin_shuffle(all, take & (LANES - 1));
    }
    *reinterpret_cast<Line*>(to + c * to_plane) = result;
  }
#else
  for (int c = c0; c < c1; ++c)
    for (int l = 0; l < LANES; ++l)
      to[c * to_plane + l] = from[l] ? from[l][c * from_plane] : Element(0);
#endif
}

// Every step-th pixel. `in` is the first item of the source; with another number of images per item
// it must lie in the arena of the batch. `item` counts items of the destination, `images` those of
// them that exist.
static void regrid(const Op& op, const Element* in, Element* out, int item, int images, int c0,
                   int c1) {
  if (regrid_blocks(op, in, out, item, images, c0, c1)) return;
  if (regrid_parts(op, in, out, item, images, c0, c1)) return;
  const Planes &from = op.in, &to = op.out;
  const Element* of_image[LANES];
  for (int l = 0; l < LANES; ++l) {
    const int image = item * to.images + lane_of(to, l).image;
    if (from.item < 0)
      of_image[l] = in + lane_of(to, l).image * from.rows * from.columns;
    else
      of_image[l] = in + image / from.images * from.item * PER_FLOAT +
                    image % from.images * from.rows * from.columns;
  }
  for (int y = 0; y < to.height; ++y)
    for (int x = 0; x < to.width; ++x) {
      const Element* pixels[LANES];
      for (int l = 0; l < LANES; ++l) {
        const Lane lane = lane_of(to, l);
        const int at_y = (lane.y + y) * op.step_y, at_x = (lane.x + x) * op.step_x;
        const bool exists = lane.image < images && lane.y + y < to.image_height &&
                            lane.x + x < to.image_width;
        const int block = at_y / from.height * from.columns + at_x / from.width;
        const int64_t inside = position(from, 0, at_y % from.height, at_x % from.width);
        pixels[l] = exists ? of_image[l] + block + inside * LANES : nullptr;
      }
      gather(pixels, (int64_t)from.size * LANES, out + position(to, 0, y, x) * LANES,
             (int64_t)to.size * LANES, c0, c1);
    }
}

}  // namespace sparse
