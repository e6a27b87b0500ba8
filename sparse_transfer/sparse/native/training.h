// What training needs besides convolutions: statistics of a batch, what they do to gradients, and
// values and gradients of weights between vectors and the order in which they are streamed.
#pragma once
#include <vector>

#include "pointwise.h"

namespace sparse {

// Rows of a norm's state, each with a float per channel; the mirror is training_tables.py.
enum State { GAMMA, BETA, AVERAGE, VARIANCE, INVERSE, SCALE, SHIFT, SLOPE, CURVE, OFFSET, D_GAMMA, D_BETA };

constexpr int TOGETHER = 16;  // channels whose rows are read one after the other, as they lie

// Which positions of which lanes are pixels of images that exist.
struct Existing {
  alignas(64) int32_t rows[LANES], columns[LANES];
  bool all = true;
  Existing(const Planes& p, int64_t images) {
    for (int l = 0; l < LANES; ++l) {
      const Lane lane = lane_of(p, l);
      rows[l] = lane.image < images ? std::clamp(p.image_height - lane.y, 0, (int)p.height) : 0;
      columns[l] = std::clamp(p.image_width - lane.x, 0, (int)p.width);
      all = all && rows[l] == p.height && columns[l] == p.width;
    }
  }
  int64_t count(Rows of) const {
    int64_t pixels = 0;
    for (int l = 0; l < LANES; ++l)
      pixels += (int64_t)std::clamp(rows[l] - of.first, 0, of.last - of.first) * columns[l];
    return pixels;
  }
  V only(V v, int y, int x, int k) const {  // zero elsewhere, even for a NaN
    const I exists = (*reinterpret_cast<const I*>(rows + k * WIDTH) > y) &
                     (*reinterpret_cast<const I*>(columns + k * WIDTH) > x);
    return (V)((I)v & exists);
  }
};

// Totals over the lanes of two sums of one channel.
struct Totals {
  alignas(16) float of[4] = {};
  Totals(const float* first, const float* second) {
    V both[4] = {};
    for (int k = 0; k < PARTS; ++k)
      both[0] += load(first + k * WIDTH), both[1] += load(second + k * WIDTH);
    add_sums(both, 2, of);
  }
};

// sums[2 c] += sum of the values, sums[2 c + 1] += of their squares. Float sums are taken of the
// distances from the first value, so that a large mean does not swallow a small deviation.
template <bool ALL>
static void sums(const Op& op, const Existing& existing, const float* in, double* sums, Rows rows,
                 int c0, int c1) {
  const Planes& p = op.in;
  const double n = existing.count(rows);
  for (int first = c0; first < c1; first += TOGETHER) {
    const int last = std::min(c1, first + TOGETHER);
    alignas(64) float plain[TOGETHER][LANES] = {}, square[TOGETHER][LANES] = {};
    for (int y = rows.first; y < rows.last; ++y)
      for (int c = first; c < last; ++c) {
        const V shift = splat(in[position(p, c, 0, 0) * LANES]);
        const float* row = in + position(p, c, y, 0) * LANES;
        for (int k = 0; k < PARTS; ++k) {
          V s[2] = {}, q[2] = {};
          for (int x = 0; x < p.width; x += 2)
            UNROLL
            for (int i = 0; i < 2; ++i) {
              if (x + i >= p.width) break;
              V v = load(row + (x + i) * LANES + k * WIDTH) - shift;
              if (!ALL) v = existing.only(v, y, x + i, k);
              s[i] += v, q[i] += v * v;
            }
          float *a = plain[c - first] + k * WIDTH, *b = square[c - first] + k * WIDTH;
          store(a, load(a) + s[0] + s[1]), store(b, load(b) + q[0] + q[1]);
        }
      }
    for (int c = first; c < last; ++c) {
      const Totals totals(plain[c - first], square[c - first]);
      const double shift = in[position(p, c, 0, 0) * LANES], s = totals.of[0], q = totals.of[1];
      sums[2 * c] += s + n * shift;
      sums[2 * c + 1] += q + 2 * shift * s + n * shift * shift;
    }
  }
}

// The gradient in `out` passes the activation that made `other`: out *= activation'(other). Then
// sums[2 c] += sum of it, sums[2 c + 1] += sum of it times what was normalised less its average.
template <bool ALL>
static void gradient_sums(const Op& op, const Existing& existing, const float* in, const float* other,
                          float* out, double* sums, Rows rows, int c0, int c1) {
  const Planes& p = op.out;
  const V zero = {}, six = splat(op.activation == RELU6 ? 6.f : INFINITY);
  for (int first = c0; first < c1; first += TOGETHER) {
    const int last = std::min(c1, first + TOGETHER);
    alignas(64) float plain[TOGETHER][LANES] = {}, product[TOGETHER][LANES] = {};
    for (int y = rows.first; y < rows.last; ++y)
      for (int c = first; c < last; ++c) {
        float* row = out + position(p, c, y, 0) * LANES;
        const float* made = other ? other + position(op.other, c, y, 0) * LANES : nullptr;
        const float* source = in ? in + position(op.in, c, y, 0) * LANES : row;
        const V average = splat(in && op.state ? op.state[AVERAGE * p.channels + c] : 0.f);
        for (int k = 0; k < PARTS; ++k) {
          V s = {}, q = {};
          for (int x = 0; x < p.width; ++x) {
            const int at = x * LANES + k * WIDTH;
            V g = load(row + at);
            if (made) {
              const V v = load(made + at);
              g = (V)((I)g & ((v > zero) & (v < six)));
            }
            if (!ALL) g = existing.only(g, y, x, k);
            store(row + at, g);
            s += g, q += g * (load(source + at) - average);
          }
          float *a = plain[c - first] + k * WIDTH, *b = product[c - first] + k * WIDTH;
          store(a, load(a) + s), store(b, load(b) + q);
        }
      }
    if (sums)
      for (int c = first; c < last; ++c) {
        const Totals totals(plain[c - first], product[c - first]);
        sums[2 * c] += totals.of[0], sums[2 * c + 1] += totals.of[1];
      }
  }
}

// out = slope g + curve (z - average) + offset of pixels that exist, else 0; g is `in`, z `other`.
template <bool ALL>
static void norm_gradient(const Op& op, const Existing& existing, const float* in, const float* other,
                          float* out, Rows rows, int c0, int c1) {
  const Planes& p = op.in;
  const float* state = op.state;
  const int n = p.channels;
  for (int y = rows.first; y < rows.last; ++y)
    for (int c = c0; c < c1; ++c) {
      const V slope = splat(state[SLOPE * n + c]), curve = splat(state[CURVE * n + c]);
      const V offset = splat(state[OFFSET * n + c]), average = splat(state[AVERAGE * n + c]);
      const float *g = in + position(p, c, y, 0) * LANES, *z = other + position(op.other, c, y, 0) * LANES;
      float* to = out + position(op.out, c, y, 0) * LANES;
      for (int i = 0; i < p.width * PARTS; ++i) {
        V v = load(g + i * WIDTH) * slope + (load(z + i * WIDTH) - average) * curve + offset;
        if (!ALL) v = existing.only(v, y, i / PARTS, i % PARTS);
        store(to + i * WIDTH, v);
      }
    }
}

// The threads' sums of a channel, which are cleared for the next run.
static inline void take(const Op& op, int c, double* found) {
  found[0] = found[1] = 0;
  for (int t = 0; t < op.n_copies; ++t) {
    double* sums = op.sums + t * op.sums_stride + 2 * c;
    found[0] += sums[0], found[1] += sums[1];
    sums[0] = sums[1] = 0;
  }
}

// Average and variance of `count` values, and what they make of gamma and beta. A frozen norm brings
// its own average and variance.
static void norm(const Op& op, int64_t images, int c0, int c1) {
  float* state = op.state;
  const int n = op.in.channels;
  const double count = (double)images * op.in.image_height * op.in.image_width;
  for (int c = c0; c < c1; ++c) {
    double found[2];
    take(op, c, found);
    if (!op.is_frozen) {
      const double average = found[0] / count;
      state[AVERAGE * n + c] = average;
      const double variance = found[1] / count - average * average;
      state[VARIANCE * n + c] = variance < 0 ? 0 : variance;  // a NaN stays one
    }
    const double inverse = 1 / std::sqrt((double)state[VARIANCE * n + c] + op.epsilon);
    state[INVERSE * n + c] = inverse;
    state[SCALE * n + c] = state[GAMMA * n + c] * inverse;
    state[SHIFT * n + c] = state[BETA * n + c] - state[AVERAGE * n + c] * inverse * state[GAMMA * n + c];
  }
}

static void finish_norm_gradient(const Op& op, int64_t images, int c0, int c1) {
  float* state = op.state;
  const int n = op.in.channels;
  const double count = (double)images * op.in.image_height * op.in.image_width;
  for (int c = c0; c < c1; ++c) {
    double found[2];
    take(op, c, found);
    const double inverse = state[INVERSE * n + c], slope = state[GAMMA * n + c] * inverse;
    state[D_BETA * n + c] = found[0];
    state[D_GAMMA * n + c] = found[1] * inverse;
    state[SLOPE * n + c] = slope;
    state[CURVE * n + c] = op.is_frozen ? 0 : -slope * inverse * inverse * found[1] / count;
    state[OFFSET * n + c] = op.is_frozen ? 0 : -slope * found[0] / count;
  }
}

// Which tap of its window is the first of the largest, as a number.
static void largest_tap(const Op& op, const float* in, float* out, int c0, int c1) {
  for (int c = c0; c < c1; ++c)
    for (int y = 0; y < op.count_y; ++y)
      for (int x = 0; x < op.count_x; ++x) {
        const float* corner =
            in + position(op.in, c, y * op.step_y - op.pad_y, x * op.step_x - op.pad_x) * LANES;
        for (int k = 0; k < PARTS; ++k) {
          V best = load(corner + k * WIDTH), tap = {};
          for (int i = 0; i < op.kernel_y; ++i)
            for (int j = 0; j < op.kernel_x; ++j) {
              const V v = load(corner + ((int64_t)i * op.in.pitch + j) * LANES + k * WIDTH);
              const I larger = v > best;
              best = larger ? v : best;
              tap = larger ? splat((float)(i * op.kernel_x + j)) : tap;
            }
          store(out + position(op.out, c, y, x) * LANES + k * WIDTH, tap);
        }
      }
}

// Every pixel gathers the gradients `in` of the windows whose largest tap, `other`, it is. Pixels of
// a row that are a step apart do so from the same taps.
static void pool_gradient(const Op& op, const float* in, const float* other, float* out, int c0, int c1) {
  struct Tap {
    int64_t at;  // in channel 0, for the first pixel
    V number;
  };
  std::vector<std::vector<Tap>> taps(std::min<int>(op.step_x, op.out.width));  // by the first pixel
  for (int y = 0; y < op.out.height; ++y) {
    for (int x = 0; x < (int)taps.size(); ++x) {
      taps[x].clear();
      for (int i = (y + op.pad_y) % op.step_y; i < op.kernel_y; i += op.step_y)
        for (int j = (x + op.pad_x) % op.step_x; j < op.kernel_x; j += op.step_x)
          // of dividends that are multiples, so that negative ones are right, too
          taps[x].push_back({position(op.in, 0, (y + op.pad_y - i) / op.step_y,
                                      (x + op.pad_x - j) / op.step_x) * LANES,
                             splat((float)(i * op.kernel_x + j))});
    }
    for (int c = c0; c < c1; ++c) {
      const float *from = in + (int64_t)c * op.in.size * LANES;
      const float *largest = other + (int64_t)c * op.other.size * LANES;
      float* row = out + position(op.out, c, y, 0) * LANES;
      for (int first = 0; first < (int)taps.size(); ++first) {
        int64_t moved = 0;
        for (int x = first; x < op.out.width; x += op.step_x, moved += LANES)
          for (int k = 0; k < LANES; k += WIDTH) {
            V sum = {};
            for (const Tap& tap : taps[first]) {
              const int64_t at = tap.at + moved + k;
              sum += (V)((I)load(from + at) & (load(largest + at) == tap.number));
            }
            store(row + x * LANES + k, sum);
          }
      }
    }
  }
}

// New weights, into the order in which they are streamed.
static void write_values(const Op& op, const float* values, int first, int last) {
  if (op.weights) {  // of a dense matrix
    Weights* weights = const_cast<Weights*>(op.weights);
    for (int i = first; i < last; ++i) weights[i] = values[op.order[i]];
    return;
  }
  Entry* entries = const_cast<Entry*>(op.entries);
  for (int i = first; i < last; ++i) entries[i].values = values[op.order[i]];
}

// The threads' gradients back into the order of the weights; cleared for the next run.
static void collect_gradient(const Op& op, float* found, int first, int last) {
  for (int i = first; i < last; ++i) {
    double sum = 0;
    for (int t = 0; t < op.n_copies; ++t) {
      float& part = op.gradient[t * op.gradient_stride + i];
      sum += part;
      part = 0.f;
    }
    found[op.order[i]] = sum;
  }
}

}  // namespace sparse
