// Sums of weights over binary inputs, from tables of the sums that four inputs can have.
#pragma once

#include "rbm_weights.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

constexpr int64_t half = units / 2;  // outputs of a table
constexpr int64_t table_inputs = 4;
constexpr int64_t tables = units / table_inputs;  // of a block of inputs: 32 KiB

typedef int32_t Ints __attribute__((vector_size(64)));

// index[block, row, t] = 16 (x0 + 2 x1 + 4 x2 + 8 x3) of the inputs 4 t ... of a block.
void make_index(const uint8_t* __restrict states, int64_t rows, int64_t in_padded, uint8_t* __restrict index) {
  for (int64_t block = 0; block < in_padded / units; ++block) {
    for (int64_t r = 0; r < rows; ++r) {
      uint32_t four[tables];
      std::memcpy(four, states + r * in_padded + block * units, sizeof four);
      uint8_t* __restrict to = index + (block * rows + r) * tables;
      for (int64_t t = 0; t < tables; ++t) to[t] = static_cast<uint8_t>(four[t] * 0x01020408u >> 20 & 0xf0u);
    }
  }
}

// sums[half][row][32] of the 64 outputs of a panel. For each four inputs, a table of the 16 sums there can be.
void table_sums(const RbmDirection& d, int64_t panel, const uint8_t* index, int64_t rows, int32_t* sums) {
  alignas(64) int32_t table[tables * 16 * half];
  const float* w = d.panels + panel * d.in_padded * units;
  for (int64_t side = 0; side < 2; ++side) {
    const int64_t first = panel * units + side * half;
    int32_t* __restrict out = sums + side * rows * half;
    for (int64_t r = 0; r < rows; ++r) std::memcpy(out + r * half, d.fixed_bias + first, sizeof(int32_t) * half);
    for (int64_t block = 0; block < d.in_padded / units; ++block) {
      for (int64_t t = 0; t < tables; ++t) {
        int32_t* __restrict entry = table + t * 16 * half;
        for (int64_t c = 0; c < half; ++c) entry[c] = 0;
        for (int64_t i = 0; i < table_inputs; ++i) {
          const float* __restrict row = w + (block * units + t * table_inputs + i) * units + side * half;
          int32_t quantised[half];
          for (int64_t c = 0; c < half; ++c) quantised[c] = math::quantise(row[c], d.scale[first + c]);
          for (int64_t s = 0; s < 1 << i; ++s) {
            for (int64_t c = 0; c < half; ++c) entry[((1 << i) + s) * half + c] = entry[s * half + c] + quantised[c];
          }
        }
      }
      const uint8_t* __restrict at = index + block * rows * tables;
      const char* base = reinterpret_cast<const char*>(table);
      for (int64_t r = 0; r < rows; ++r) {
        Ints* to = reinterpret_cast<Ints*>(out + r * half);
        Ints low = to[0], high = to[1];
#pragma GCC unroll 16
        for (int64_t t = 0; t < tables; ++t) {
          const auto* entry = reinterpret_cast<const Ints*>(base + t * 16 * half * 4 + at[r * tables + t] * 8);
          low += entry[0];
          high += entry[1];
        }
        to[0] = low;
        to[1] = high;
      }
    }
  }
}

}  // namespace

}  // namespace variate::cpu::VARIATE_ISA
