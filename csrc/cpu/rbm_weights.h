// The weights of a Boltzmann machine, prepared for one call: in panels of 64 outputs, with a fixed-point scale each.
#pragma once

#include <cstring>

#include <variate/math/rbm.hpp>

#include "rbm.h"
#include "tile.h"
#include "transpose.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

constexpr int64_t units = rbm_units;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

inline float finite_or_zero(float w) { return math::abs(w) < __builtin_inff() ? w : 0.0f; }

inline double power_of_two(int e) {  // of a normal number
  const uint64_t bits = static_cast<uint64_t>(1023 + e) << 52;
  double power;
  std::memcpy(&power, &bits, sizeof power);
  return power;
}

// The least e with x < 2^e, for 0 and normal x above it.
inline int exponent_above(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return x > 0.0 ? static_cast<int>(bits >> 52) - 1022 : 0;
}

// Of each output's |w|: the largest, and the sum up to a relative 2^-17.
struct PanelTotals {
  float largest[units] = {};
  double sum[units] = {};
};

// 64 outputs of a weight whose element (input, output) is at data + input * in_stride + output * out_stride.
void load_panel(const RbmDirection& d, int64_t panel, const float* data, int64_t in_stride, int64_t out_stride,
                PanelTotals& totals) {
  const int64_t first = panel * units, count = least(units, d.out - first);
  for (int64_t start = 0; start < d.in_padded; start += units) {
    const int64_t rows = least(units, d.in - start);
    float* __restrict to = d.panels + (panel * d.in_padded + start) * units;
    const float* from = data + start * in_stride + first * out_stride;
    if (count < units || rows < units) std::memset(to, 0, sizeof(float) * units * units);
    if (in_stride == 1) {
      transpose(from, out_stride, count, rows, to, units);
    } else {
      for (int64_t i = 0; i < rows; ++i) {
        if (out_stride == 1) {
          std::memcpy(to + i * units, from + i * in_stride, sizeof(float) * count);
        } else {
          for (int64_t c = 0; c < count; ++c) to[i * units + c] = from[i * in_stride + c * out_stride];
        }
      }
    }
    float sums[units] = {};
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t c = 0; c < units; ++c) {
        const float w = finite_or_zero(to[i * units + c]), a = math::abs(w);
        to[i * units + c] = w;
        totals.largest[c] = a > totals.largest[c] ? a : totals.largest[c];
        sums[c] += a * 0x1p-8f;  // 64 of the largest numbers stay finite
      }
    }
    for (int64_t c = 0; c < units; ++c) totals.sum[c] += static_cast<double>(sums[c]) * 0x1p8;
  }
}

// Whether the sum of |round(w 2^e)| over a column and its bias is below 2^31; `total` is about that of |w|.
bool fits(const float* column, int64_t in, double bias, double total, int e) {
  const double power = power_of_two(e), scaled = total * power;
  const double slack = 0.5 * static_cast<double>(in) + 1.0 + 0x1p-17 * scaled;
  if (scaled + slack < 0x1p31) return true;
  if (scaled - slack >= 0x1p31) return false;
  double sum = __builtin_fabs(__builtin_rint(bias * power));
  for (int64_t i = 0; i < in; ++i) {
    sum += __builtin_fabs(__builtin_rint(static_cast<double>(column[i * units]) * power));
  }
  return sum < 0x1p31;
}

inline int limited(int e) {
  return e > math::largest_exponent    ? math::largest_exponent
         : e < math::smallest_exponent ? math::smallest_exponent
                                       : e;
}

// Scales and biases of 64 outputs.
void fix(const RbmDirection& d, int64_t panel, const PanelTotals& totals, const variate_tensor& bias) {
  const float* w = d.panels + panel * d.in_padded * units;
  const int64_t first = panel * units, count = least(units, d.out - first);
  for (int64_t c = 0; c < units; ++c) {
    const int64_t at = first + c;
    const float b = c < count ? element<float>(bias, at, 0) : 0.0f;
    const bool finite = math::abs(b) < __builtin_inff();
    const double known = finite ? b : 0.0;
    const double total = totals.sum[c] + __builtin_fabs(known);
    int e = 0;
    if (total > 0.0) {
      // The total just above 2^31: roundings, its own too, may still bring it below.
      e = limited(math::sum_bits + 1 - exponent_above(total * (1.0 - 0x1p-17)));
      while (!fits(w + c, d.in, known, total, e)) --e;
    }
    const double power = power_of_two(e);
    d.bias[at] = b;
    d.offset[at] = c >= count ? -__builtin_inff() : finite ? 0.0f : b;  // what pads a layer stays 0
    d.fixed_bias[at] = static_cast<int32_t>(__builtin_rint(known * power));
    d.scale[at] = static_cast<float>(power);
    d.inverse[at] = static_cast<float>(power_of_two(-e));
    d.radius[at] = static_cast<float>(total * power * (1.0 + 0x1p-16));
    const int bits = exponent_above(__builtin_rint(static_cast<double>(totals.largest[c]) * power));
    d.shift[at] = bits > 15 ? bits - 15 : 0;
    d.unit[at] = static_cast<float>(power_of_two(d.shift[at] - e));
  }
}

}  // namespace

}  // namespace variate::cpu::VARIATE_ISA
