// A call is cut into tiles that stay in the first-level cache. A kernel loads the inputs of a tile into dense buffers
// (or reads them in place where they already are dense), runs flat loops whose length is a multiple of 16 over them,
// and stores the results; dtypes and strides end here. The cut depends on the shapes alone.
#pragma once

#include <cstring>
#include <type_traits>

#include <variate/variate.h>

namespace variate::cpu {

inline constexpr int64_t tile_elements = 1024;
inline constexpr int64_t lane_multiple = 16;
inline constexpr int64_t parallel_grain = 16384;  // elements under which a second thread does not pay

#ifdef VARIATE_ISA
namespace VARIATE_ISA {

// Rows [row, row + rows) and columns [col, col + cols). In a buffer, row r of the tile starts at r * pitch, a multiple
// of 4, so that each row starts a Philox block; `count` is what the loops cover, lanes beyond the rows hold zeros or
// the results of zeros.
struct Tile {
  int64_t row, rows, col, cols, pitch, count;
};

struct Grid {
  int64_t rows, cols, tile_rows, row_tiles, col_tiles;

  Grid(int64_t rows_, int64_t cols_) : rows(rows_), cols(cols_) {
    // Rows without columns are rows all the same: their sums are 0.
    const int64_t width = cols > 0 ? cols : 1;
    const int64_t pitch = (width + 3) / 4 * 4;
    col_tiles = (width + tile_elements - 1) / tile_elements;
    tile_rows = pitch >= tile_elements ? 1 : tile_elements / pitch;
    if (tile_rows >= 4) tile_rows -= tile_rows % 4;  // whole lanes, so that dense rows are used in place
    row_tiles = (rows + tile_rows - 1) / tile_rows;
  }

  Tile tile(int64_t index) const {
    Tile t;
    t.row = index / col_tiles * tile_rows;
    t.col = index % col_tiles * tile_elements;
    t.rows = rows - t.row < tile_rows ? rows - t.row : tile_rows;
    t.cols = cols - t.col < tile_elements ? cols - t.col : tile_elements;
    t.pitch = (t.cols + 3) / 4 * 4;
    t.count = (t.rows * t.pitch + lane_multiple - 1) / lane_multiple * lane_multiple;
    return t;
  }
};

// `passes`: how often a body goes over its tile.
template <class Body>
void for_tiles(const Grid& grid, int threads, Body body, int64_t passes = 1) {
  const int64_t tiles = grid.row_tiles * grid.col_tiles;
  const bool parallel = threads > 1 && grid.rows * grid.cols >= (parallel_grain + passes - 1) / passes;
  if (!parallel) {
    for (int64_t i = 0; i < tiles; ++i) body(grid.tile(i));
    return;
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < tiles; ++i) body(grid.tile(i));
}

template <class T>
struct alignas(64) Buffer {
  T data[tile_elements + lane_multiple];  // row_sum reads, and drops, a few lanes beyond the last row
};

template <class T>
inline constexpr variate_dtype dtype_of = VARIATE_FLOAT32;
template <>
inline constexpr variate_dtype dtype_of<double> = VARIATE_FLOAT64;
template <>
inline constexpr variate_dtype dtype_of<int64_t> = VARIATE_INT64;

// bfloat16 and float16, by bits, rounding to nearest even.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

static inline float widen(float x) { return x; }
static inline double widen(double x) { return x; }
static inline float widen(uint8_t x) { return x; }
static inline int64_t widen(int64_t x) { return x; }
static inline float widen(BFloat16 x) { return __builtin_bit_cast(float, static_cast<uint32_t>(x.bits) << 16); }

static inline float widen(Float16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16;
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13;
  // Multiplying by 2^112 moves the exponent's bias, and makes subnormals normal, exactly.
  const float scaled = __builtin_bit_cast(float, magnitude) * 0x1p112f;
  const uint32_t special = magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : __builtin_bit_cast(uint32_t, scaled);
  return __builtin_bit_cast(float, sign | special);
}

template <class To>
static inline To narrow(float x) {
  return static_cast<To>(x);
}
template <class To>
static inline To narrow(double x) {
  return static_cast<To>(x);
}
template <class To>
static inline To narrow(int64_t x) {
  return static_cast<To>(x);
}

template <>
inline BFloat16 narrow<BFloat16>(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>(x != x ? (bits >> 16) | 0x40u : rounded)};
}

template <>
inline Float16 narrow<Float16>(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Normal results: move the bias and round the 13 bits that go. Subnormal ones: an addition of 1/2 rounds them.
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
  const uint32_t subnormal = __builtin_bit_cast(uint32_t, shifted) - 0x3f000000u;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  return {static_cast<uint16_t>(sign | result)};
}

template <>
inline BFloat16 narrow<BFloat16>(double x) {
  return narrow<BFloat16>(static_cast<float>(x));
}
template <>
inline Float16 narrow<Float16>(double x) {
  return narrow<Float16>(static_cast<float>(x));
}
// A NaN has no integer.
template <>
inline uint8_t narrow<uint8_t>(float x) {
  return x != x ? 0 : static_cast<uint8_t>(x);
}
template <>
inline uint8_t narrow<uint8_t>(double x) {
  return x != x ? 0 : static_cast<uint8_t>(x);
}
template <>
inline int64_t narrow<int64_t>(float x) {
  return x != x ? 0 : static_cast<int64_t>(x);
}
template <>
inline int64_t narrow<int64_t>(double x) {
  return x != x ? 0 : static_cast<int64_t>(x);
}

// `function(element)` with a null pointer of the C++ type of `dtype`.
template <class Function>
static inline void with_type(variate_dtype dtype, Function function) {
  switch (dtype) {
    case VARIATE_FLOAT32: return function(static_cast<float*>(nullptr));
    case VARIATE_FLOAT64: return function(static_cast<double*>(nullptr));
    case VARIATE_BFLOAT16: return function(static_cast<BFloat16*>(nullptr));
    case VARIATE_FLOAT16: return function(static_cast<Float16*>(nullptr));
    case VARIATE_UINT8: return function(static_cast<uint8_t*>(nullptr));
    case VARIATE_INT64: return function(static_cast<int64_t*>(nullptr));
  }
}

// Whether the tile of `tensor` can be used in place of a buffer of T.
template <class T>
static inline bool in_place(const variate_tensor& tensor, const Tile& t) {
  return tensor.dtype == dtype_of<T> && tensor.col_stride == 1 && t.rows * t.pitch == t.count && t.pitch == t.cols &&
         (t.rows == 1 || tensor.row_stride == t.pitch);
}

template <class T, class Element>
static inline void load_row(T* __restrict to, const Element* __restrict from, int64_t stride, int64_t cols) {
  if (stride == 1) {
    for (int64_t c = 0; c < cols; ++c) to[c] = static_cast<T>(widen(from[c]));
  } else if (stride == 0 && cols > 0) {
    const T value = static_cast<T>(widen(from[0]));
    for (int64_t c = 0; c < cols; ++c) to[c] = value;
  } else {
    for (int64_t c = 0; c < cols; ++c) to[c] = static_cast<T>(widen(from[c * stride]));
  }
}

// The tile of `tensor` as dense T: in place, or copied to `buffer` with zeros in the lanes between and beyond rows.
template <class T>
static inline const T* load(const variate_tensor& tensor, const Tile& t, Buffer<T>& buffer) {
  const int64_t start = t.row * tensor.row_stride + t.col * tensor.col_stride;
  if (in_place<T>(tensor, t)) return static_cast<const T*>(tensor.data) + start;
  with_type(tensor.dtype, [&](auto* type) {
    const auto* from = static_cast<decltype(type)>(tensor.data) + start;
    for (int64_t r = 0; r < t.rows; ++r) {
      T* to = buffer.data + r * t.pitch;
      load_row(to, from + r * tensor.row_stride, tensor.col_stride, t.cols);
      for (int64_t c = t.cols; c < t.pitch; ++c) to[c] = T(0);
    }
  });
  for (int64_t i = t.rows * t.pitch; i < t.count; ++i) buffer.data[i] = T(0);
  return buffer.data;
}

// Where the loop writes the tile of `tensor`: the tensor itself or `buffer`; `store` then finishes the job.
template <class T>
static inline T* target(const variate_tensor& tensor, const Tile& t, Buffer<T>& buffer) {
  if (!in_place<T>(tensor, t)) return buffer.data;
  return static_cast<T*>(tensor.data) + t.row * tensor.row_stride + t.col * tensor.col_stride;
}

// The same for an output that may be left out: its lanes are computed and dropped.
template <class T>
static inline T* optional_target(const variate_tensor& tensor, const Tile& t, Buffer<T>& buffer) {
  return tensor.data ? target(tensor, t, buffer) : buffer.data;
}

// Copies a tile to its tensor.
template <class T>
static inline void write(const variate_tensor& tensor, const Tile& t, const T* from) {
  with_type(tensor.dtype, [&](auto* type) {
    using Element = std::remove_pointer_t<decltype(type)>;
    auto* to = static_cast<Element*>(tensor.data) + t.row * tensor.row_stride + t.col * tensor.col_stride;
    for (int64_t r = 0; r < t.rows; ++r) {
      const T* __restrict row_from = from + r * t.pitch;
      Element* __restrict row_to = to + r * tensor.row_stride;
      const int64_t stride = tensor.col_stride;
      if (stride == 1) {
        for (int64_t c = 0; c < t.cols; ++c) row_to[c] = narrow<Element>(row_from[c]);
      } else {
        for (int64_t c = 0; c < t.cols; ++c) row_to[c * stride] = narrow<Element>(row_from[c]);
      }
    }
  });
}

template <class T>
static inline void store(const variate_tensor& tensor, const Tile& t, const T* from) {
  if (tensor.data && !in_place<T>(tensor, t)) write(tensor, t, from);
}

// The part of a tensor that begins `offset` elements in.
static inline variate_tensor part(variate_tensor tensor, int64_t offset) {
  with_type(tensor.dtype, [&](auto* type) { tensor.data = static_cast<decltype(type)>(tensor.data) + offset; });
  return tensor;
}

// One element of a tensor, as T.
template <class T>
static inline T element(const variate_tensor& tensor, int64_t row, int64_t col) {
  T value = T(0);
  with_type(tensor.dtype, [&](auto* type) {
    value = static_cast<T>(
        widen(static_cast<decltype(type)>(tensor.data)[row * tensor.row_stride + col * tensor.col_stride]));
  });
  return value;
}

template <class T>
static inline void set_element(const variate_tensor& tensor, int64_t row, T value) {
  with_type(tensor.dtype, [&](auto* type) {
    using Element = std::remove_pointer_t<decltype(type)>;
    static_cast<Element*>(tensor.data)[row * tensor.row_stride] = narrow<Element>(value);
  });
}

// Each row's one value of `tensor` [rows, 1], in every lane of the row; 0 where it is left out.
template <class T>
static inline const T* load_rows(const variate_tensor& tensor, const Tile& t, Buffer<T>& buffer) {
  for (int64_t r = 0; r < t.rows; ++r) {
    const T value = tensor.data ? element<T>(tensor, t.row + r, 0) : T(0);
    for (int64_t c = 0; c < t.pitch; ++c) buffer.data[r * t.pitch + c] = value;
  }
  for (int64_t i = t.rows * t.pitch; i < t.count; ++i) buffer.data[i] = T(0);
  return buffer.data;
}

enum class Access { read, write };

// Asks for the memory a page beyond the sixteen numbers at x, for a loop that waits for memory: the processor's own
// prefetching ends with the page. An address that does not exist is no error, so the last numbers ask for more too.
template <Access access, class T>
static inline void prefetch(const T* x) {
  constexpr int64_t page = 4096, line = 64, bytes = lane_multiple * sizeof(T);
  for (int64_t i = 0; i < bytes; i += line) {
    __builtin_prefetch(reinterpret_cast<const char*>(x) + page + i, access == Access::write);
  }
}

// The sum of a row of a buffer. Sixteen partial sums, then a tree: the same order, and so the same bits, on every
// instruction set. Written over the compiler's vectors, as it builds the tree of an array through memory.
template <class T>
static inline T row_sum(const T* x, int64_t count) {
  typedef T Vector16 __attribute__((vector_size(16 * sizeof(T)), aligned(sizeof(T)), may_alias));
  typedef T Vector8 __attribute__((vector_size(8 * sizeof(T))));
  typedef T Vector4 __attribute__((vector_size(4 * sizeof(T))));
  const auto lanes_at = [x](int64_t i) { return *reinterpret_cast<const Vector16*>(x + i); };
  Vector16 lanes = {};
  int64_t i = 0;
  for (; i + lane_multiple <= count; i += lane_multiple) lanes += lanes_at(i);
  if (i < count) {
    Vector16 rest = lanes_at(i);
    for (int64_t j = 0; j < lane_multiple; ++j) rest[j] = i + j < count ? rest[j] : T(0);
    lanes += rest;
  }
  const Vector8 eight = __builtin_shufflevector(lanes, lanes, 0, 1, 2, 3, 4, 5, 6, 7) +
                        __builtin_shufflevector(lanes, lanes, 8, 9, 10, 11, 12, 13, 14, 15);
  const Vector4 four =
      __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// The sums over the rows of a tile: final where a row is one tile, otherwise a part for finish_row_sums.
template <class T>
static inline void store_row_sums(const variate_tensor& out, void* workspace, const Grid& grid, const Tile& t,
                                  const T* x) {
  for (int64_t r = 0; r < t.rows; ++r) {
    const T sum = row_sum(x + r * t.pitch, t.cols);
    if (grid.col_tiles == 1) {
      set_element(out, t.row + r, sum);
    } else {
      static_cast<double*>(workspace)[t.row * grid.col_tiles + t.col / tile_elements] = sum;
    }
  }
}

static inline void finish_row_sums(const variate_tensor& out, const void* workspace, const Grid& grid) {
  if (grid.col_tiles == 1) return;
  for (int64_t r = 0; r < grid.rows; ++r) {
    const double* parts = static_cast<const double*>(workspace) + r * grid.col_tiles;
    double sum = 0.0;
    for (int64_t i = 0; i < grid.col_tiles; ++i) sum += parts[i];
    set_element(out, r, sum);
  }
}

}  // namespace VARIATE_ISA
#endif

}  // namespace variate::cpu
