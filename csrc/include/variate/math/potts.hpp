// Weights of a site's states, in whole numbers: their order of summation cannot matter.
#pragma once

#include "lattice.hpp"

namespace variate::math {

// 2^k with which the weights of q states add up to less than 2^32.
VARIATE_INLINE double potts_scale(std::int64_t q) {
  int bits = 0;
  while (q >> bits) ++bits;
  return static_cast<double>(std::uint64_t{1} << (32 - bits));
}

// round(scale e^x) of x <= 0, up to rounding.
VARIATE_INLINE std::uint32_t potts_weight(double x, double scale) {
  constexpr double nothing = -40.0;  // e^-40 < 2^-57
  const double below = x < 0.0 ? x : 0.0;
  return static_cast<std::uint32_t>(exp_exact(below > nothing ? below : nothing) * scale + 0.5);
}

// field - best; equal infinite ones are 0 apart.
VARIATE_INLINE double potts_apart(double field, double best) { return field == best ? 0.0 : field - best; }

}  // namespace variate::math
