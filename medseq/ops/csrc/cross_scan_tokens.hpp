// B, C and their gradients of an image, packed tile by tile in the order of each direction.
//
// A tile wants 64 tokens of all states; in the image these lie in as many rows of memory, which for sides that are
// powers of two fall into the same few lines of the cache. So they are brought into the order (tile, state, token) once
// for all channels, and their gradients back from it.
#pragma once

#include "cross_scan_image.hpp"

namespace medseq {
namespace MEDSEQ_ISA {
namespace {

// First of the tiles of direction k in arrays (..., 4, tile, state, kTile), as p.packed and g.shares are.
template <class S> S *tiles_of(void *array, const CrossScanProblem &p, const Image<S> &image, int64_t row, int k) {
  return static_cast<S *>(array) + (row * kDirections + k) * image.tiles() * p.states * kTile;
}

template <class S> void reverse(S *x, int64_t count) {
  for (int64_t i = 0, j = count - 1; i < j; ++i, --j) {
    S first = x[i];
    x[i] = x[j];
    x[j] = first;
  }
}

// One strip of one row of B or C, to the scan's order; `work` holds as many vectors as the image columns.
template <class S>
void read_strip(const Image<S> &image, const Strip &s, bool columns, bool backwards, const S *from, S *out,
                typename Simd<S>::V *work) {
  if (columns) {
    for (int64_t r = 0; r < image.rows; r += Lanes<S>::count) {
      int lanes = static_cast<int>(image.rows - r < Lanes<S>::count ? image.rows - r : Lanes<S>::count);
      load_rows(from, image.cols, lanes, r * image.cols + s.col, s.cols, work, 1);
      for (int64_t c = 0; c < s.cols; ++c) store(out + c * image.rows + r, work[c], lanes);
    }
  } else {
    const S *first = from + (backwards ? image.size - s.first - s.count : s.first);
    memcpy(out, first, sizeof(S) * static_cast<size_t>(s.count));
  }
  if (backwards) reverse(out, s.count);
}

// The other way round; `in` is lost.
template <class S>
void write_strip(const Image<S> &image, const Strip &s, bool columns, bool backwards, S *to, S *in) {
  if (backwards) reverse(in, s.count);
  if (!columns) {
    memcpy(to + (backwards ? image.size - s.first - s.count : s.first), in, sizeof(S) * static_cast<size_t>(s.count));
    return;
  }
  typename Simd<S>::V work[kTile];
  for (int64_t c = 0; c < s.cols; c += Lanes<S>::count) {
    int lanes = static_cast<int>(s.cols - c < Lanes<S>::count ? s.cols - c : Lanes<S>::count);
    for (int64_t r = 0; r < image.rows; r += kTile) {
      int64_t count = image.rows - r < kTile ? image.rows - r : kTile;
      load_rows(in + c * image.rows, image.rows, lanes, r, count, work, 1);
      for (int64_t i = 0; i < count; ++i) store(to + (r + i) * image.cols + s.col + c, work[i], lanes);
    }
  }
}

// One of the 8 batch state rows of B and C: work for threads to share.
struct TokenRow {
  int which, k; // which: B or C
  int64_t batch, n, image_row, packed_row;

  TokenRow(const CrossScanProblem &p, int64_t task) {
    n = task % p.states, task /= p.states;
    k = static_cast<int>(task % kDirections), task /= kDirections;
    batch = task % p.batch, which = static_cast<int>(task / p.batch);
    image_row = (batch * kDirections + k) * p.states + n;
    packed_row = which * p.batch + batch;
  }
  static int64_t count(const CrossScanProblem &p) { return 2 * p.batch * kDirections * p.states; }
};

template <class S> void pack(const CrossScanProblem &p, const Image<S> &image, int64_t task, S *strip,
                             typename Simd<S>::V *work) {
  const TokenRow row(p, task);
  const bool columns = p.columns[row.k], backwards = p.reverse[row.k];
  const S *from = static_cast<const S *>(row.which ? p.C : p.B) + row.image_row * image.size;
  S *to = tiles_of(p.packed, p, image, row.packed_row, row.k) + row.n * kTile;
  for (int64_t i = 0; i < image.strips(columns); ++i) {
    const Strip s = image.strip(columns, backwards, i);
    read_strip(image, s, columns, backwards, from, strip, work);
    for (int64_t t = 0; t < s.count; t += kTile) {
      int64_t count = s.count - t < kTile ? s.count - t : kTile;
      memcpy(to + (s.tile + t / kTile) * p.states * kTile, strip + t, sizeof(S) * static_cast<size_t>(count));
    }
  }
}

// The gradient of one row of B or C: the sum over the shares of the channels.
template <class S>
void unpack(const CrossScanProblem &p, const CrossScanGradient &g, const Image<S> &image, int64_t task, S *strip) {
  const TokenRow row(p, task);
  const bool columns = p.columns[row.k], backwards = p.reverse[row.k];
  S *to = static_cast<S *>(row.which ? g.C : g.B) + row.image_row * image.size;
  for (int64_t i = 0; i < image.strips(columns); ++i) {
    const Strip s = image.strip(columns, backwards, i);
    for (int64_t part = 0; part < p.parts; ++part) {
      const S *share = tiles_of<S>(g.shares, p, image, row.packed_row * p.parts + part, row.k) + row.n * kTile;
      for (int64_t t = 0; t < s.count; t += kTile) {
        const S *from = share + (s.tile + t / kTile) * p.states * kTile;
        int64_t count = s.count - t < kTile ? s.count - t : kTile;
        for (int64_t j = 0; j < count; ++j) strip[t + j] = part ? strip[t + j] + from[j] : from[j];
      }
    }
    write_strip(image, s, columns, backwards, to, strip);
  }
}

} // namespace
} // namespace MEDSEQ_ISA
} // namespace medseq
