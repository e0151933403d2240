/* States on lattices: checkerboard Gibbs sampling of the Potts model. Math: variate/math/potts.hpp. */
#ifndef VARIATE_POTTS_H
#define VARIATE_POTTS_H

#include "lattice.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Sweeps of heat-bath updates, colour 0 and then colour 1, in place: each state becomes a with probability
     w_a / sum_b w_b,  w_a = round(2^k exp(beta (coupling (n_a - n_m) + field_a - field_m))),  k = 31 - floor(log2 q),
   n_a being the number of neighbours in state a, and m the likeliest state. states: [chains, sites] of 0 ... q - 1.
   beta, coupling: float64 [chains, 1], row_stride 0 for one number. field: float64 [chains, q], row_stride 0 for that
   of all; data NULL for 0.

   Noise: site (z, y, x) of colour c takes the word of element (c rows + z height + y) ceil(width / 2) + x / 2 of the
   chain's sample at step first_step + sweep, rows being depth height. */
typedef struct variate_potts_gibbs_args {
  uint32_t struct_size; /* sizeof(variate_potts_gibbs_args) */
  variate_execution execution;
  variate_noise noise;
  variate_lattice lattice;
  int64_t chains;
  int64_t categories; /* q, 2 to 255 */
  int64_t sweeps;
  int64_t first_step; /* taken modulo 2^32 */
  variate_tensor beta;
  variate_tensor coupling;
  variate_tensor field;
  uint8_t* states;
} variate_potts_gibbs_args;

VARIATE_API variate_status variate_potts_gibbs(const variate_potts_gibbs_args* args);
VARIATE_API uint64_t variate_potts_gibbs_workspace(const variate_potts_gibbs_args* args);

#ifdef __cplusplus
}
#endif

#endif
