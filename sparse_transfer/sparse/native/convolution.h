// Convolution tiles: their sums stay in registers while the weights stream by.
#pragma once
#include "pointwise.h"
#include "products.h"

namespace sparse {

struct Tile {  // pointers to the tile's first position in channel 0
  const Element *in, *other;
  Element* out;
  int64_t in_row, in_column;                         // elements to the next row and position
  int64_t out_row, out_column, other_row;
  int64_t out_plane, other_plane;                    // elements from channel to channel
};

// The bias, and what is to be added. It is read before anything is written, so that the sums may
// take its place.
template <int RY, int RX>
static inline void begin(V (&c)[RY][RX][PARTS], const Tile& t, const Element* other, float bias) {
  const V start = splat(bias);
  UNROLL
  for (int y = 0; y < RY; ++y)
    UNROLL
    for (int x = 0; x < RX; ++x)
      UNROLL
      for (int k = 0; k < PARTS; ++k) c[y][x][k] = start;
  if (other) {
    UNROLL
    for (int y = 0; y < RY; ++y)
      UNROLL
      for (int x = 0; x < RX; ++x) {
        V more[PARTS];
        get(other + y * t.other_row + x * t.out_column, more);
        UNROLL
        for (int k = 0; k < PARTS; ++k) c[y][x][k] += more[k];
      }
  }
}

// Applies the activation, stores.
template <int RY, int RX>
static inline void finish(V (&c)[RY][RX][PARTS], const Tile& t, Element* out, int activation,
                          Overflow& overflow) {
  const V low = splat(activation == RELU || activation == RELU6 ? 0.f : -INFINITY);
  const V high = splat(activation == RELU6 ? 6.f : INFINITY);
  UNROLL
  for (int y = 0; y < RY; ++y)
    UNROLL
    for (int x = 0; x < RX; ++x) {
      UNROLL
      for (int k = 0; k < PARTS; ++k) {
        overflow.see(c[y][x][k]);  // of sums in 16 bits
        c[y][x][k] = at_most(at_least(c[y][x][k], low), high);
      }
      put(out + y * t.out_row + x * t.out_column, c[y][x], overflow);
    }
  if (activation > RELU6)  // from memory: the sums would lose their registers to this loop
    for (int y = 0; y < RY; ++y)
      for (int x = 0; x < RX; ++x)
        for (int k = 0; k < PARTS; ++k) {
          Element* at = out + y * t.out_row + x * t.out_column + k * WIDTH;
          store(at, activate(load(at), activation));
        }
}

#define ALWAYS_INLINE inline __attribute__((always_inline))  // or sums would leave the registers

template <int RY, int RX>
static ALWAYS_INLINE void add(Sum (&c)[RY][RX][ACCUMULATORS], const Entry* e, const Entry* end,
                              const Tile& t, int64_t column) {
  for (; e != end; ++e) {
    const Factors weights = everywhere(e->values);
    const Element* in[TERMS];
    UNROLL
    for (int i = 0; i < TERMS; ++i) in[i] = t.in + e->offsets[i];
    UNROLL
    for (int y = 0; y < RY; ++y) {
      UNROLL
      for (int x = 0; x < RX; ++x) {
        Factors inputs[ACCUMULATORS];
        read(in, x * column, inputs);
        UNROLL
        for (int k = 0; k < ACCUMULATORS; ++k)
          c[y][x][k] = add_product(c[y][x][k], weights, inputs[k]);
      }
      UNROLL
      for (int i = 0; i < TERMS; ++i)
        if (y + 1 < RY) in[i] = apart(in[i] + t.in_row);
    }
  }
}

#if defined(SPARSE_FP16)
// A row whose sums never leave float16, up to the activation: where layers are sparse most rows are
// that short, and conversions would take longer than their products.
template <int RY, int RX>
static ALWAYS_INLINE void short_row(const Entry* e, const Entry* end, const Tile& t, int64_t column,
                                    const Element* other, Element* out, float bias, int activation,
                                    Overflow& overflow) {
  Sum c[RY][RX][ACCUMULATORS] = {};
  add(c, e, end, t, column);
  const Sum start = (Element)bias - Sum{}, zero = {}, six = (Element)6.f - zero;
  UNROLL
  for (int y = 0; y < RY; ++y)
    UNROLL
    for (int x = 0; x < RX; ++x) {
      Sum v = c[y][x][0] + start;
      if (other) v += *reinterpret_cast<const Sum*>(other + y * t.other_row + x * t.out_column);
      overflow.see(v);
      if (activation == RELU || activation == RELU6)  // a NaN stays
        v = (Sum)_mm512_max_ph((__m512h)zero, (__m512h)v);
      if (activation == RELU6) v = (Sum)_mm512_min_ph((__m512h)six, (__m512h)v);
      *reinterpret_cast<Sum*>(out + y * t.out_row + x * t.out_column) = v;
    }
}
#endif

// Rows [first, last) of one block of input channels. STEP is the distance of two inputs in
// positions where the compiler should know it, else 0.
template <int RY, int RX, int STEP>
static void sparse_tile(const Op& op, const Tile& t, int block, int first, int last) {
  const int32_t* pointers = op.pointers + (int64_t)block * (op.n_rows + 1);
  const bool begins = block == 0, ends = block == op.blocks - 1;
  const int64_t column = STEP ? STEP * LANES : t.in_column;
  Overflow overflow;
  for (int r = first; r < last; ++r) {
    const Entry *e = op.entries + pointers[r], *end = op.entries + pointers[r + 1];
    if (e == end && !begins && !ends) continue;
    const int channel = op.channels[r];
    Element* out = t.out + channel * t.out_plane;
#if defined(SPARSE_FP16)
    if (begins && ends && end - e <= CHUNK && op.activation <= RELU6) {
      short_row<RY, RX>(e, end, t, column, t.other ? t.other + channel * t.other_plane : nullptr, out,
                        op.bias ? op.bias[channel] : 0.f, op.activation, overflow);
      continue;
    }
#endif
    V c[RY][RX][PARTS];
    if (begins) {
      begin(c, t, t.other ? t.other + channel * t.other_plane : nullptr,
            op.bias ? op.bias[channel] : 0.f);
    } else {
      UNROLL
      for (int y = 0; y < RY; ++y)
        UNROLL
        for (int x = 0; x < RX; ++x) get(out + y * t.out_row + x * t.out_column, c[y][x]);
    }
    if constexpr (CHUNK == 0) {
      add(c, e, end, t, column);
    } else {
      for (; e != end; e += std::min<int64_t>(CHUNK, end - e)) {
        Sum sums[RY][RX][ACCUMULATORS] = {};
        add(sums, e, e + std::min<int64_t>(CHUNK, end - e), t, column);
        UNROLL
        for (int y = 0; y < RY; ++y)
          UNROLL
          for (int x = 0; x < RX; ++x) empty(sums[y][x], c[y][x]);
      }
    }
    if (ends) {
      finish(c, t, out, op.activation, overflow);
      continue;
    }
    UNROLL
    for (int y = 0; y < RY; ++y)
      UNROLL
      for (int x = 0; x < RX; ++x) put(out + y * t.out_row + x * t.out_column, c[y][x], overflow);
  }
  overflow.count();
}

// Values of a dense matrix: rows share what they load. One tile row, RX positions, B channels.
constexpr int DENSE_ROWS = WIDTH == 16 ? 4 : 2;
constexpr int GRADIENT_ROWS = 4, GRADIENT_COLUMNS = WIDTH == 16 ? 6 : 2;
constexpr int DENSE_TILE = WIDTH == 16 ? 6 / ACCUMULATORS : WIDTH == 8 ? 3 : 1;

template <int B, int RX>
static ALWAYS_INLINE void add(Sum (&c)[B][RX][ACCUMULATORS], const Weights* w, const int32_t* offsets,
                              int count, const Tile& t) {
  for (int i = 0; i < count; ++i, w += B, offsets += TERMS) {
    const Element* in[TERMS];
    UNROLL
    for (int j = 0; j < TERMS; ++j) in[j] = t.in + offsets[j];
    Factors v[RX][ACCUMULATORS];
    UNROLL
    for (int x = 0; x < RX; ++x) read(in, x * t.in_column, v[x]);
    UNROLL
    for (int b = 0; b < B; ++b) {
      const Factors weights = everywhere(w[b]);
      UNROLL
      for (int x = 0; x < RX; ++x)
        UNROLL
        for (int k = 0; k < ACCUMULATORS; ++k)
          c[b][x][k] = add_product(c[b][x][k], weights, v[x][k]);
    }
  }
}

template <int RX>
static void dense_tile(const Op& op, const Tile& t, int block, int first, int last) {
  constexpr int B = DENSE_ROWS;
  const int columns = op.n_offsets / TERMS;
  const int k0 = (int64_t)columns * block / op.blocks;
  const int k1 = (int64_t)columns * (block + 1) / op.blocks;
  const bool begins = block == 0, ends = block == op.blocks - 1;
  Overflow overflow;
  for (int r = first; r < last; r += B) {
    const int rows = std::min(B, last - r);
    const Weights* w = op.weights + (int64_t)r * columns + (int64_t)k0 * B;
    Element* out = t.out + r * t.out_plane;
    const Element* from = !begins ? out : t.other ? t.other + r * t.other_plane : nullptr;
    const int64_t plane = begins ? t.other_plane : t.out_plane;
    V c[B][RX][PARTS];
    UNROLL
    for (int b = 0; b < B; ++b) {
      const bool exists = b < rows;
      const V start = splat(begins && op.bias && exists ? op.bias[r + b] : 0.f);
      UNROLL
      for (int x = 0; x < RX; ++x) {
        V more[PARTS] = {};
        if (from && exists) get(from + b * plane + x * t.out_column, more);
        UNROLL
        for (int k = 0; k < PARTS; ++k) c[b][x][k] = start + more[k];
      }
    }
    const int32_t* offsets = op.offsets + k0 * TERMS;
    if constexpr (CHUNK == 0) {
      add(c, w, offsets, k1 - k0, t);
    } else {
      for (int i = 0; i < k1 - k0; i += CHUNK) {
        Sum sums[B][RX][ACCUMULATORS] = {};
        add(sums, w + i * B, offsets + i * TERMS, std::min(CHUNK, k1 - k0 - i), t);
        UNROLL
        for (int b = 0; b < B; ++b)
          UNROLL
          for (int x = 0; x < RX; ++x) empty(sums[b][x], c[b][x]);
      }
    }
    UNROLL
    for (int b = 0; b < B; ++b) {
      if (b >= rows) break;
      V one[1][RX][PARTS];
      UNROLL
      for (int x = 0; x < RX; ++x)
        UNROLL
        for (int k = 0; k < PARTS; ++k) one[0][x][k] = c[b][x][k];
      if (ends) {
        finish(one, t, out + b * t.out_plane, op.activation, overflow);
        continue;
      }
      UNROLL
      for (int x = 0; x < RX; ++x)
        put(out + b * t.out_plane + x * t.out_column, one[0][x], overflow);
    }
  }
  overflow.count();
}

#if !defined(SPARSE_BF16) && !defined(SPARSE_FP16)
// gradient[e] += sum over the tile of the output's gradient (t.other) times the input of entry e. The
// tile's gradient stays in registers for all entries of a row; every entry costs a sum over lanes, so
// large tiles are better.
template <int RY, int RX, int STEP>
static void gradient_tile(const Op& op, const Tile& t, float* gradient, int block, int first,
                          int last) {
  const int32_t* pointers = op.pointers + (int64_t)block * (op.n_rows + 1);
  const int64_t column = STEP ? STEP * LANES : t.in_column;
  for (int r = first; r < last; ++r) {
    const int begin = pointers[r], end = pointers[r + 1];
    if (begin == end) continue;
    const float* other = t.other + op.channels[r] * t.other_plane;
    V g[RY][RX][PARTS];
    UNROLL
    for (int y = 0; y < RY; ++y)
      UNROLL
      for (int x = 0; x < RX; ++x)
        UNROLL
        for (int k = 0; k < PARTS; ++k)
          g[y][x][k] = load(other + y * t.other_row + x * LANES + k * WIDTH);
    for (int e = begin; e < end; e += 4) {
      const int count = std::min(4, end - e);
      const float* in[4];
      for (int i = 0; i < 4; ++i) in[i] = t.in + op.entries[i < count ? e + i : e].offsets[0];
      V c[4] = {};
      UNROLL
      for (int y = 0; y < RY; ++y) {
        UNROLL
        for (int x = 0; x < RX; ++x)
          UNROLL
          for (int k = 0; k < PARTS; ++k)
            UNROLL
            for (int i = 0; i < 4; ++i) c[i] += g[y][x][k] * load(in[i] + x * column + k * WIDTH);
        if (y + 1 < RY)
          UNROLL
          for (int i = 0; i < 4; ++i) in[i] = apart(in[i] + t.in_row);
      }
      add_sums(c, count, gradient + e);
    }
  }
}

// The same of a matrix without zeros: rows share what they load, so sums stay in registers over a
// tile of any size, and there are fewer sums over lanes.
static void dense_gradient_tile(const Op& op, const Tile& t, float* gradient, int height, int width,
                                int first, int last) {
  constexpr int B = GRADIENT_ROWS, E = GRADIENT_COLUMNS;
  const int columns = op.n_offsets;
  for (int r = first; r < last; r += B)
    for (int e = 0; e < columns; e += E) {
      const float *in[E], *other[B];
      UNROLL
      for (int i = 0; i < E; ++i) in[i] = t.in + op.offsets[std::min(e + i, columns - 1)];
      UNROLL
      for (int b = 0; b < B; ++b) other[b] = t.other + std::min(r + b, last - 1) * t.other_plane;
      V c[E][B] = {};
      for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x)
          for (int k = 0; k < LANES; k += WIDTH) {
            const int64_t from = y * t.in_row + x * t.in_column + k;
            const int64_t at = y * t.other_row + x * LANES + k;
            V g[B];
            UNROLL
            for (int b = 0; b < B; ++b) g[b] = load(other[b] + at);
            UNROLL
            for (int i = 0; i < E; ++i) {
              const V v = load(in[i] + from);
              UNROLL
              for (int b = 0; b < B; ++b) c[i][b] += g[b] * v;
            }
          }
      for (int i = 0; i < std::min(E, columns - e); ++i) {
        float sums[B] = {};
        add_sums(c[i], B, sums);
        for (int b = 0; b < std::min(B, last - r); ++b)
          gradient[(int64_t)(r + b) * columns + e + i] += sums[b];
      }
    }
}
#endif

typedef void (*TileFunction)(const Op&, const Tile&, int block, int first, int last);

constexpr int MAX_WIDTH = MAX_TILE < 14 ? MAX_TILE : 14;
constexpr int MAX_HEIGHT = 4;

template <int RY, int RX, int STEP>
static constexpr TileFunction sparse_function() {
  // a taller tile at a step other than one is not worth its code
  if constexpr (RY * RX <= MAX_TILE && (STEP == 1 || RY <= 2))
    return sparse_tile<RY, RX, STEP>;
  else
    return nullptr;
}
struct SparseTable {
  TileFunction of[3][MAX_HEIGHT + 1][MAX_WIDTH + 1] = {};
};
template <int STEP, int RY, std::size_t... X>
static constexpr void fill_row(SparseTable& table, std::index_sequence<X...>) {
  ((table.of[STEP][RY][X + 1] = sparse_function<RY, X + 1, STEP>()), ...);
}
static constexpr SparseTable make_sparse_table() {
  SparseTable table;
  constexpr auto all = std::make_index_sequence<MAX_WIDTH>{};
  fill_row<0, 1>(table, all), fill_row<1, 1>(table, all), fill_row<2, 1>(table, all);
  fill_row<0, 2>(table, all), fill_row<1, 2>(table, all), fill_row<2, 2>(table, all);
  fill_row<1, 3>(table, all), fill_row<1, 4>(table, all);
  return table;
}
static constexpr SparseTable SPARSE_TILES = make_sparse_table();

template <std::size_t... X>
static TileFunction dense_function(int width, std::index_sequence<X...>) {
  static constexpr TileFunction all[] = {dense_tile<X + 1>...};
  return all[width - 1];
}
constexpr int GRADIENT_TILE = MAX_TILE < 14 ? 14 : 24;  // four registers are for sums

#if !defined(SPARSE_BF16) && !defined(SPARSE_FP16)
typedef void (*GradientFunction)(const Op&, const Tile&, float*, int block, int first, int last);
template <int RY, int RX, int STEP>
static constexpr GradientFunction gradient_function() {
  if constexpr (RY * RX <= GRADIENT_TILE && (STEP || RY <= 2))
    return gradient_tile<RY, RX, STEP>;
  else
    return nullptr;
}
struct GradientTable {
  GradientFunction of[3][MAX_HEIGHT + 1][MAX_WIDTH + 1] = {};
};
template <int STEP, int RY, std::size_t... X>
static constexpr void fill_row(GradientTable& table, std::index_sequence<X...>) {
  ((table.of[STEP][RY][X + 1] = gradient_function<RY, X + 1, STEP>()), ...);
}
static constexpr GradientTable make_gradient_table() {
  GradientTable table;
  constexpr auto all = std::make_index_sequence<MAX_WIDTH>{};
  fill_row<0, 1>(table, all), fill_row<1, 1>(table, all), fill_row<2, 1>(table, all);
  fill_row<0, 2>(table, all), fill_row<1, 2>(table, all), fill_row<2, 2>(table, all);
  fill_row<1, 3>(table, all), fill_row<2, 3>(table, all);
  fill_row<1, 4>(table, all), fill_row<2, 4>(table, all);
  return table;
}
static constexpr GradientTable GRADIENT_TILES = make_gradient_table();
#endif

static inline TileFunction tile_function(const Op& op, int height, int width) {
  if (op.kind == DENSE) return dense_function(width, std::make_index_sequence<DENSE_TILE>{});
  return SPARSE_TILES.of[op.step_x <= 2 ? op.step_x : 0][height][width];
}

// Tiles of nearly equal size, none larger than asked for.
static inline int pieces(int count, int size) { return (count + size - 1) / size; }

struct Area {
  int y0, y1, x0, x1;
};
static Area area_of(const Op& op, int tile) {
  const int across = pieces(op.count_x, op.tile_width), down = pieces(op.count_y, op.tile_height);
  const int i = tile / across, j = tile % across;
  return {op.count_y * i / down, op.count_y * (i + 1) / down, op.count_x * j / across,
          op.count_x * (j + 1) / across};
}

static void convolve(const Op& op, const Element* in, const Element* other, Element* out,
                     float* gradient, int tile, int first, int last) {
  const auto [y0, y1, x0, x1] = area_of(op, tile);
  Tile t = {};
  t.in = in + position(op.in, 0, y0 * op.step_y, x0 * op.step_x) * LANES;
  t.in_row = (int64_t)op.step_y * op.in.pitch * LANES;
  t.in_column = (int64_t)op.step_x * LANES;
  t.other_plane = (int64_t)op.other.size * LANES;
#if !defined(SPARSE_BF16) && !defined(SPARSE_FP16)
  if (op.kind == GRADIENT) {
    t.other = other + position(op.other, 0, y0, x0) * LANES;
    t.other_row = (int64_t)op.other.pitch * LANES;
    if (op.n_offsets)
      return dense_gradient_tile(op, t, gradient, y1 - y0, x1 - x0, first, last);
    const auto run = GRADIENT_TILES.of[op.step_x <= 2 ? op.step_x : 0][y1 - y0][x1 - x0];
    for (int block = 0; block < op.blocks; ++block) run(op, t, gradient, block, first, last);
    return;
  }
#else
  (void)gradient;  // there are none in 16 bits
#endif
  const int out_y = op.first_y + y0 * op.out_step_y, out_x = op.first_x + x0 * op.out_step_x;
  t.out = out + position(op.out, 0, out_y, out_x) * LANES;
  if (other) t.other = other + position(op.other, 0, out_y, out_x) * LANES;
  t.other_row = (int64_t)op.out_step_y * op.other.pitch * LANES;
  t.out_row = (int64_t)op.out_step_y * op.out.pitch * LANES;
  t.out_column = (int64_t)op.out_step_x * LANES;
  t.out_plane = (int64_t)op.out.size * LANES;
  const TileFunction run = tile_function(op, y1 - y0, x1 - x0);
  for (int block = 0; block < op.blocks; ++block) run(op, t, block, first, last);
}

}  // namespace sparse
