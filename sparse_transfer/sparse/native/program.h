// What Python hands over: a program of operations on buffers of planes. The mirror is abi.py.
#pragma once
#include <cstdint>

namespace sparse {

constexpr int ABI = 4;  // counted up, here and in abi.py, when what is here or in the facts changes

#if defined(SPARSE_BF16)
constexpr int TERMS = 2;   // inputs that one instruction multiplies by weights of their own
typedef uint32_t Weights;  // of these inputs: two bf16
#elif defined(SPARSE_FP16)
constexpr int TERMS = 1;
typedef uint32_t Weights;  // twice the same float16
#else
constexpr int TERMS = 1;
typedef float Weights;
#endif

// A buffer of channels. Sixteen lanes (thirty-two of 16 bits) share a position: `images` images, each
// cut into a grid of `rows` x `columns` blocks of `height` x `width` pixels; lane = (image * rows +
// row) * columns + column. Pixel (y, x) of every block of channel c lies, as one aligned vector, at position
// c * size + (top + y) * pitch + left + x. Around the block there is a halo.
struct Planes {
  int64_t at;    // first float, from the start of the arena
  int64_t item;  // floats from item to item in the arena of the batch; -1: in that of the thread
  int32_t channels, height, width, top, left, pitch, size;
  int32_t image_height, image_width;  // pixels of a whole image; blocks may stick out
  int32_t images, rows, columns;
  int32_t is_saved;  // with `item`: in the arena that outlives the run
  int32_t tensor;    // with `item`: in that tensor, whose channels are planes without gaps; or -1
};

struct Entry {  // weights that are not zero, and where their inputs lie from the tile's first
  Weights values;
  int32_t offsets[TERMS];  // elements
};

enum Kind : int32_t {
  LOAD,       // tensor -> out
  STORE,      // in -> tensor
  HALO,       // moves within in
  SPARSE,     // out = activation(entries * in + bias + other)
  DENSE,      // the same with a dense matrix
  GRADIENT,   // values += <other, in> for every entry
  MAX_POOL,   // in -> out
  AVERAGE_POOL,
  MEAN,       // in -> out of one position, over all pixels of an image
  POINTWISE,  // out = activation(in * scale + bias + other) * gate
  REGRID,     // in -> out: every step-th pixel of the same images, cut into other lanes
  SUMS,           // training.h: sums and squares of in, per channel
  NORM,           // once: state of a batch norm from its sums
  GRADIENT_SUMS,  // out *= activation'(other); sums of it, and of it times in
  FINISH_NORM_GRADIENT,  // once: from those sums
  NORM_GRADIENT,  // out = gradient of other, which was normalised, from in, that of the result
  LARGEST_TAP,    // in -> out, the tap of each window that has its maximum
  POOL_GRADIENT,  // in, other (taps) -> out
  WRITE_VALUES,   // once: tensor -> entries
  COLLECT_GRADIENT,  // once: gradient of entries -> tensor
  SAMPLE,     // in -> out: every step-th pixel, without gaps, ready to be joined
  JOIN,       // in -> out: such pixels of several items into the lanes of one
};

enum Turns : int32_t {  // whether an operation takes turns with that before it
  NO_TURNS,
  BY_ROWS,      // a row needs no more than the rows so far
  BY_CHANNELS,  // a channel needs no more than the same channel
};

struct Op {
  int32_t kind, activation;
  Planes in, out, other;  // `other` is absent where it has no channels
  int32_t tensor;         // which tensor is loaded or stored
  int32_t blocks;         // groups of input channels that are streamed one after the other;
                          // SAMPLE, JOIN: items that are joined
  int64_t strides[4];     // of that tensor, in elements: image, channel, row, column
  const Entry* entries;
  const int32_t* pointers;  // SPARSE, GRADIENT: blocks x (n_rows + 1), into entries
  const int32_t* channels;  // SPARSE, GRADIENT: output channel of each row
  const Weights* weights;   // DENSE: (n_rows / block_rows, n_offsets / TERMS, block_rows)
  const int32_t* offsets;   // DENSE, and GRADIENT of a dense matrix: of the columns;
                            // HALO: (n_moves, 3) from, to, permutation
  const void* permutations;     // HALO: (any, LANES) of Index: lane to take, or -1
  const float* bias;            // per output channel, or null
  const float* scale;           // POINTWISE: per channel, or null
  float* gradient;              // GRADIENT: one copy for each thread
  int64_t gradient_stride;
  int32_t n_rows, n_offsets, n_moves;
  int32_t tile_height, tile_width;
  int32_t step_y, step_x;                          // positions from one input to the next
  int32_t first_y, first_x, out_step_y, out_step_x;  // the same of the output
  int32_t count_y, count_x;                        // outputs
  int32_t kernel_y, kernel_x, pad_y, pad_x;        // pools
  int32_t gate;  // POINTWISE: whether `other` is a gate of one position, which multiplies
  float fill;    // HALO: what lies outside the image
  int32_t is_frozen;     // NORM and its gradient: average and variance are given
  double epsilon;        // NORM: added to the variance
  double* sums;          // per thread and channel: two
  int64_t sums_stride;
  float* state;          // of a norm: rows of `State`
  const int32_t* order;  // WRITE_VALUES (entries or weights), COLLECT_GRADIENT: which each is
  int32_t n_entries, n_copies;  // of the gradient or the sums: one for each thread
  int32_t follows;  // of `Turns`
};

// Operations that run one after the other for one item: `images` images. Where that is 0 they run
// once, for the whole batch.
struct Segment {
  int32_t first, count, images;
};

}  // namespace sparse
