// An image as four sequences: how one vector of channels is read and written in place.
//
// x, y and their gradients are transposed once into a plane, V[row][col], that all directions walk over. delta, which
// every direction has its own of, is read strip by strip: a tile of a row, or some columns at once, so that memory is
// met in whole cache lines.
#pragma once

#include "cross_scan.hpp"
#include "selective_scan_block.hpp"

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

constexpr int64_t kStripTokens = 1024; // or 16 columns, if these are more

// Tokens [first, first + count) of one direction that are loaded together.
struct Strip {
  int64_t first, count;
  int64_t col, cols; // down the columns only
  int64_t tile;      // number of its first tile among the checkpoints
};

// Where the tokens of an image lie.
template <class S> struct Image {
  typedef typename Simd<S>::V V;
  int64_t rows, cols, size;
  int64_t pitch;        // vectors between two rows of a plane
  int64_t wide, height; // columns of a strip, and tiles in it

  explicit Image(const CrossScanProblem &p) : rows(p.rows), cols(p.cols), size(p.rows * p.cols), pitch(p.cols) {
    // The rows of a column should not all fall into the same lines of the cache.
    if (pitch * static_cast<int64_t>(sizeof(V)) % 512 == 0) ++pitch;
    int64_t sixteens = kStripTokens / (16 * rows);
    wide = 16 * (sixteens < 1 ? 1 : sixteens);
    wide = wide < cols ? wide : cols;
    height = (wide * rows + kTile - 1) / kTile;
  }

  int64_t plane() const { return rows * pitch; }
  int64_t strip_tokens() const { return wide * rows < kTile ? kTile : wide * rows; }
  int64_t strips(bool columns) const { return columns ? (cols + wide - 1) / wide : (size + kTile - 1) / kTile; }
  int64_t tiles() const {
    int64_t down = strips(true) * height, along = strips(false);
    return down > along ? down : along;
  }

  // Strip i in the scan's order.
  Strip strip(bool columns, bool reverse, int64_t i) const {
    if (!columns) return {i * kTile, size - i * kTile < kTile ? size - i * kTile : kTile, 0, 0, i};
    int64_t at = reverse ? strips(true) - 1 - i : i, col = at * wide;
    int64_t many = cols - col < wide ? cols - col : wide;
    return {(reverse ? cols - col - many : col) * rows, many * rows, col, many, at * height};
  }

  // Tokens in memory, in (row, col) or (col, row) order, and in a plane.
  Walk walk(bool reverse) const { return reverse ? Walk::row_major(size).reversed(size) : Walk::row_major(size); }
  Walk plane_walk(bool columns, bool reverse) const {
    Walk w = {0, 1, size, 0};
    if (columns) w = {0, pitch, rows, 1};
    else if (pitch != cols) w = {0, 1, cols, pitch};
    return reverse ? w.reversed(size) : w;
  }

  void load_plane(const S *base, int lanes, V *plane) const {
    if (pitch == cols) return load_rows(base, size, lanes, 0, size, plane, 1);
    for (int64_t r = 0; r < rows; ++r) load_rows(base, size, lanes, r * cols, cols, plane + r * pitch, 1);
  }
  void store_plane(S *base, int lanes, const V *plane) const {
    if (pitch == cols) return store_rows(base, size, lanes, 0, size, plane, 1);
    for (int64_t r = 0; r < rows; ++r) store_rows(base, size, lanes, r * cols, cols, plane + r * pitch, 1);
  }

  void load_strip(const Strip &s, bool columns, bool reverse, const S *base, int lanes, V *out) const {
    if (!columns) return load_tile(walk(reverse), s.first, s.count, base, size, lanes, out);
    for (int64_t r = 0; r < rows; ++r)
      load_rows(base, size, lanes, r * cols + s.col, s.cols, reverse ? out + s.count - 1 - r : out + r,
                reverse ? -rows : rows);
  }
  void store_strip(const Strip &s, bool columns, bool reverse, S *base, int lanes, const V *in) const {
    if (!columns) return store_tile(walk(reverse), s.first, s.count, base, size, lanes, in);
    for (int64_t r = 0; r < rows; ++r)
      store_rows(base, size, lanes, r * cols + s.col, s.cols, reverse ? in + s.count - 1 - r : in + r,
                 reverse ? -rows : rows);
  }
};

// What the one-dimensional scan's code for parameters wants to know.
MEDSEQ_INLINE SelectiveScanProblem flat(const CrossScanProblem &p) {
  SelectiveScanProblem f = {};
  f.states = p.states, f.channels = kDirections * p.channels, f.groups = kDirections;
  f.A = p.A, f.D = p.D, f.delta_bias = p.delta_bias;
  return f;
}

// A block of channels in direction k.
MEDSEQ_INLINE Place in_direction(const CrossScanProblem &p, const Place &at, int k) {
  return {at.batch, k, k * p.channels + at.channel, at.lanes};
}

template <class S> MEDSEQ_INLINE int64_t channel_blocks(const CrossScanProblem &p) {
  return (p.channels + Lanes<S>::count - 1) / Lanes<S>::count;
}

template <class S> MEDSEQ_INLINE Place block_place(const CrossScanProblem &p, int64_t batch, int64_t block) {
  int64_t first = block * Lanes<S>::count, rest = p.channels - first;
  return {batch, 0, first, static_cast<int>(rest < Lanes<S>::count ? rest : Lanes<S>::count)};
}

template <class S> MEDSEQ_INLINE int64_t x_offset(const CrossScanProblem &p, const Place &at) {
  return (at.batch * p.channels + at.channel) * p.rows * p.cols;
}
template <class S> MEDSEQ_INLINE int64_t delta_offset(const CrossScanProblem &p, const Place &at, int k) {
  return ((at.batch * kDirections + k) * p.channels + at.channel) * p.rows * p.cols;
}
template <class S>
MEDSEQ_INLINE int64_t checkpoint_offset(const CrossScanProblem &p, const Image<S> &image, const Place &at, int k,
                                        int64_t tile) {
  return ((at.batch * kDirections + k) * image.tiles() + tile) * p.states * p.channels + at.channel;
}

// The sum of the direct connections of a block: they all see the same x.
template <class S> typename Simd<S>::V all_skips(const CrossScanProblem &p, const Place &at) {
  typename Simd<S>::V sum{};
  for (int k = 0; k < kDirections && p.D; ++k)
    sum += load(static_cast<const S *>(p.D) + k * p.channels + at.channel, at.lanes);
  return sum;
}

} // namespace
} // namespace MEDSEQ_ISA
} // namespace medseq
