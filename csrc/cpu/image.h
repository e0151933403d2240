// Calls over images are cut into blocks of pixels of one image. A kernel sees each channel of a block as a dense row,
// in place where it lies so, otherwise transposed into a buffer; its loops run over the row.
#pragma once

#include <variate/logistic.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "tile.h"
#include "transpose.h"

namespace variate::cpu {

// A row of a block is worth a stream of its own from memory, and the rows of a mixture stay in the second-level cache.
inline constexpr int64_t block_pixels = 256;

// Pixels [pixel, pixel + pixels) of one image; loops cover `count`, a whole number of lanes.
struct Block {
  int64_t index, batch, pixel, pixels, count;
};

struct Blocks {
  int64_t batch, pixels, per_image;

  Blocks(int64_t batch_, int64_t pixels_)
      : batch(batch_), pixels(pixels_), per_image((pixels_ + block_pixels - 1) / block_pixels) {}

  int64_t count() const { return batch * per_image; }

  Block block(int64_t index) const {
    Block b;
    b.index = index;
    b.batch = index / per_image;
    b.pixel = index % per_image * block_pixels;
    b.pixels = pixels - b.pixel < block_pixels ? pixels - b.pixel : block_pixels;
    b.count = (b.pixels + lane_multiple - 1) / lane_multiple * lane_multiple;
    return b;
  }
};

// What a call's workspace holds: `rows` rows of a block for each thread, of floats or doubles, and a sum for each
// block.
struct ImageWorkspace {
  static constexpr int64_t alignment = 64;
  int64_t bytes;  // of a thread
  char* start;
  double* partial_sums;

  static int64_t thread_bytes(int64_t rows, bool wide) {
    return rows * block_pixels * static_cast<int64_t>(wide ? sizeof(double) : sizeof(float));
  }

  static uint64_t size(const Blocks& blocks, int64_t rows, bool wide, int threads) {
    return alignment + blocks.count() * sizeof(double) + (threads > 1 ? threads : 1) * thread_bytes(rows, wide);
  }

  ImageWorkspace(void* workspace, const Blocks& blocks, int64_t rows, bool wide)
      : bytes(thread_bytes(rows, wide)), partial_sums(static_cast<double*>(workspace)) {
    const uintptr_t end = reinterpret_cast<uintptr_t>(partial_sums + blocks.count());
    start = reinterpret_cast<char*>((end + alignment - 1) & ~uintptr_t{alignment - 1});
  }

  void* rows(int thread) const { return start + thread * bytes; }
};

static inline bool is_wide(const variate_image& params, const variate_image& target) {
  return params.dtype == VARIATE_FLOAT64 || target.dtype == VARIATE_FLOAT64;
}

// Whether every block of `image` is used in place, as rows of floats or doubles.
static inline bool rows_in_place(const variate_image& image, int64_t pixels, bool wide) {
  return image.dtype == (wide ? VARIATE_FLOAT64 : VARIATE_FLOAT32) && image.pixel_stride == 1 &&
         pixels % lane_multiple == 0;
}

#ifdef VARIATE_ISA
namespace VARIATE_ISA {

// body(block, thread), thread < threads.
template <class Body>
void for_blocks(const Blocks& blocks, int threads, Body body) {
  const int64_t count = blocks.count();
#if defined(_OPENMP)
  if (threads > 1 && count > 1) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < count; ++i) body(blocks.block(i), omp_get_thread_num());
    return;
  }
#endif
  for (int64_t i = 0; i < count; ++i) body(blocks.block(i), 0);
}

static inline int64_t block_start(const variate_image& image, const Block& block) {
  return block.batch * image.batch_stride + block.pixel * image.pixel_stride;
}

// The channels of a block as rows of T, with zeros in the lanes beyond its pixels.
template <class T>
class ImageRows {
 public:
  // `buffer` holds `channels` rows of block_pixels; there is none for rows that are used in place.
  ImageRows(const variate_image& image, const Block& block, int64_t channels, T* buffer) {
    const int64_t start = block_start(image, block);
    if (!buffer) {
      data_ = static_cast<const T*>(image.data) + start;
      stride_ = image.channel_stride;
      return;
    }
    data_ = buffer;
    stride_ = block_pixels;
    if (image.dtype == dtype_of<T> && image.channel_stride == 1) {
      transpose(static_cast<const T*>(image.data) + start, image.pixel_stride, block.pixels, channels, buffer, stride_);
    } else {
      with_type(image.dtype, [&](auto* type) {
        const auto* from = static_cast<decltype(type)>(image.data) + start;
        for (int64_t c = 0; c < channels; ++c) {
          load_row(buffer + c * stride_, from + c * image.channel_stride, image.pixel_stride, block.pixels);
        }
      });
    }
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = block.pixels; i < block.count; ++i) buffer[c * stride_ + i] = T(0);
    }
  }

  const T* operator[](int64_t channel) const { return data_ + channel * stride_; }

 private:
  const T* data_;
  int64_t stride_;
};

// Where a kernel writes the channels of a block; `store` then finishes the job.
template <class T>
class ImageTarget {
 public:
  ImageTarget(const variate_image& image, const Block& block, int64_t channels, T* buffer)
      : image_(image), block_(block), channels_(channels), in_place_(!buffer) {
    data_ = buffer ? buffer : static_cast<T*>(image.data) + block_start(image, block);
    stride_ = buffer ? block_pixels : image.channel_stride;
  }

  T* operator[](int64_t channel) const { return data_ + channel * stride_; }

  void store() const {
    if (in_place_) return;
    const int64_t start = block_start(image_, block_);
    if (image_.dtype == dtype_of<T> && image_.channel_stride == 1) {
      transpose(data_, stride_, channels_, block_.pixels, static_cast<T*>(image_.data) + start, image_.pixel_stride);
      return;
    }
    with_type(image_.dtype, [&](auto* type) {
      using Element = std::remove_pointer_t<decltype(type)>;
      for (int64_t c = 0; c < channels_; ++c) {
        const T* __restrict from = data_ + c * stride_;
        Element* __restrict to = static_cast<Element*>(image_.data) + start + c * image_.channel_stride;
        for (int64_t i = 0; i < block_.pixels; ++i) to[i * image_.pixel_stride] = narrow<Element>(from[i]);
      }
    });
  }

 private:
  const variate_image& image_;
  const Block& block_;
  int64_t channels_;
  bool in_place_;
  T* data_;
  int64_t stride_;
};

}  // namespace VARIATE_ISA
#endif

}  // namespace variate::cpu
