// Heat-bath thresholds of spins on a lattice, and where its sites lie.
#pragma once

#include "philox.hpp"

namespace variate::math {

inline constexpr int plane_count = 8;      // digits of a site's uniform that come as planes
inline constexpr int threshold_bits = 40;  // and 32 more, where they are needed

// exp(x) of -708 <= x <= 0 in float64, the same bits on every CPU and GPU; relative error below 2^-51.
VARIATE_INLINE double exp_exact(double x) {
  constexpr double magic = 0x1.8p52;
  const double shifted = fma(x, 0x1.71547652b82fep+0, magic);
  const double n = shifted - magic;
  const double r = fma(n, -0x1.abc9e3b39803fp-56, fma(n, -0x1.62e42fefa39efp-1, x));
  double p = 0x1.6124613a86d09p-33;  // 1 / 13!, ..., 1 / 2!
  p = fma(p, r, 0x1.1eed8eff8d898p-29);
  p = fma(p, r, 0x1.ae64567f544e4p-26);
  p = fma(p, r, 0x1.27e4fb7789f5cp-22);
  p = fma(p, r, 0x1.71de3a556c734p-19);
  p = fma(p, r, 0x1.a01a01a01a01ap-16);
  p = fma(p, r, 0x1.a01a01a01a01ap-13);
  p = fma(p, r, 0x1.6c16c16c16c17p-10);
  p = fma(p, r, 0x1.1111111111111p-7);
  p = fma(p, r, 0x1.5555555555555p-5);
  p = fma(p, r, 0x1.5555555555555p-3);
  p = fma(p, r, 0.5);
  p = fma(p * r, r, r) + 1.0;
  return p * double_of(static_cast<std::uint64_t>(static_cast<std::int64_t>(n) + 1023) << 52);
}

// ceil(2^40 sigmoid(x)): a 40-bit draw below it is a spin +1. Fields beyond all that 40 bits tell apart, infinite ones
// too, decide for certain.
VARIATE_INLINE std::uint64_t heat_bath_threshold(double x) {
  constexpr double certain = 40.0;  // e^-40 < 2^-57
  const double magnitude = x < 0.0 ? -x : x;
  const double e = exp_exact(magnitude < certain ? -magnitude : -certain);
  const double p = (x < 0.0 ? e : 1.0) / (1.0 + e);
  const double scaled = p * 0x1p40;
  const std::uint64_t whole = static_cast<std::uint64_t>(scaled);
  const std::uint64_t threshold = whole + (static_cast<double>(whole) < scaled ? 1 : 0);
  if (!(magnitude < certain)) return x < 0.0 ? 0 : std::uint64_t{1} << threshold_bits;
  return threshold;
}

// Sites of a colour in a row whose first site of that colour is x = parity.
VARIATE_INLINE std::int64_t sites_in_row(std::int64_t width, int parity) { return (width + 1 - parity) / 2; }

VARIATE_INLINE std::int64_t words_in_row(std::int64_t width) { return ((width + 1) / 2 + 31) / 32; }

}  // namespace variate::math
