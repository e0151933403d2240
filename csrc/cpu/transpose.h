// Matrices transposed.
#pragma once

#include <cstdint>

namespace variate::cpu::VARIATE_ISA {

// 16 x 16 numbers, transposed.
template <class T>
static inline void transpose_square(const T* __restrict from, int64_t from_stride, T* __restrict to,
                                    int64_t to_stride) {
  typedef T Line __attribute__((vector_size(16 * sizeof(T)), aligned(sizeof(T)), may_alias));
  Line a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = *reinterpret_cast<const Line*>(from + i * from_stride);
  // Four rounds, each of which swaps one bit of the row's number with one of the column's.
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    b[i] = __builtin_shufflevector(a[i], a[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    b[i + 8] = __builtin_shufflevector(a[i], a[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
#pragma GCC unroll 8
  for (int k = 0; k < 8; ++k) {
    const int i = k / 4 * 8 + k % 4;
    a[i] = __builtin_shufflevector(b[i], b[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
    a[i + 4] = __builtin_shufflevector(b[i], b[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  }
#pragma GCC unroll 8
  for (int k = 0; k < 8; ++k) {
    const int i = k / 2 * 4 + k % 2;
    b[i] = __builtin_shufflevector(a[i], a[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    b[i + 2] = __builtin_shufflevector(a[i], a[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
#pragma GCC unroll 8
  for (int k = 0; k < 8; ++k) {
    const int i = 2 * k;
    a[i] = __builtin_shufflevector(b[i], b[i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
    a[i + 1] = __builtin_shufflevector(b[i], b[i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
  }
  for (int i = 0; i < 16; ++i) *reinterpret_cast<Line*>(to + i * to_stride) = a[i];
}

// The rows of `to` are the columns of `from`; both have the strides between their rows.
template <class T>
static inline void transpose(const T* __restrict from, int64_t from_stride, int64_t from_rows, int64_t from_cols,
                             T* __restrict to, int64_t to_stride) {
  const int64_t whole_rows = from_rows / 16 * 16, whole_cols = from_cols / 16 * 16;
  for (int64_t c = 0; c < whole_cols; c += 16) {
    for (int64_t r = 0; r < whole_rows; r += 16) {
      transpose_square(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
    }
  }
  for (int64_t r = 0; r < from_rows; ++r) {
    for (int64_t c = r < whole_rows ? whole_cols : 0; c < from_cols; ++c) {
      to[c * to_stride + r] = from[r * from_stride + c];
    }
  }
}

}  // namespace variate::cpu::VARIATE_ISA
