/* Spins and states on lattices: checkerboard Gibbs sampling. Math: variate/math/lattice.hpp. */
#ifndef VARIATE_LATTICE_H
#define VARIATE_LATTICE_H

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum variate_boundary VARIATE_INT { VARIATE_PERIODIC = 0, VARIATE_OPEN = 1 } variate_boundary;

/* Sites (z, y, x); two dimensions are depth 1, which has no neighbours along z. The colour of a site is (x + y + z)
   % 2. Sides are at least 2, and those of periodic lattices even, so that neighbours have different colours; at a side
   of 2 both neighbours are the same site, and count twice. */
typedef struct variate_lattice {
  int32_t dimensions; /* 2 or 3 */
  variate_boundary boundary;
  int64_t depth;
  int64_t height;
  int64_t width;
} variate_lattice;

/* Packed spins: words[chain, colour, z, y, w], w < variate_lattice_words(width). Bit b of word w is the site
   x = 2 (32 w + b) + (y + z + colour) % 2, 1 for spin +1; bits beyond the row are 0. */
VARIATE_API int64_t variate_lattice_words(int64_t width);

/* spins: [chains, sites] of +1 and -1. */
typedef struct variate_ising_pack_args {
  uint32_t struct_size; /* sizeof(variate_ising_pack_args) */
  variate_execution execution;
  variate_lattice lattice;
  int64_t chains;
  int8_t* spins;
  uint32_t* words;
} variate_ising_pack_args;

/* words from spins; a spin above 0 is +1. */
VARIATE_API variate_status variate_ising_pack(const variate_ising_pack_args* args);
/* spins from words. */
VARIATE_API variate_status variate_ising_unpack(const variate_ising_pack_args* args);

/* Columns of `moments`: sums over the measurements, m the magnetisation and b the bond sum, both per site. */
typedef enum variate_ising_moment VARIATE_INT {
  VARIATE_ISING_M = 0,
  VARIATE_ISING_ABS_M = 1,
  VARIATE_ISING_M2 = 2,
  VARIATE_ISING_M4 = 3,
  VARIATE_ISING_B = 4,
  VARIATE_ISING_B2 = 5,
  VARIATE_ISING_MB = 6,
  VARIATE_ISING_MOMENTS = 7
} variate_ising_moment;

/* Sweeps of heat-bath updates, colour 0 and then colour 1, in place: each spin becomes +1 with probability
     sigmoid(2 beta (coupling sum over neighbours of bond spin + field)),
   to 2^-40. beta, coupling, field: float64 [chains, 1], row_stride 0 for one number. bonds: the signs of the bonds as
   packed spins [2 dimensions, ...], for each dimension from z or y to x first those to the neighbour before and then
   to the one behind; NULL for +1. One measurement after every measure_every sweeps, where moments [chains,
   VARIATE_ISING_MOMENTS] is given: it is added to.

   Noise: word w of row r = z height + y and colour k takes the eight planes 8 q ... 8 q + 7 of elements, with
   q = (k rows + r) words + w, of the chain's sample at step first_step + sweep: bit b of plane p is digit p of that
   site's uniform. A site that eight digits leave undecided takes 32 more: the word of element (z height + y) width + x
   of fold_in(key, 1). */
typedef struct variate_ising_gibbs_args {
  uint32_t struct_size;
  variate_execution execution;
  variate_noise noise;
  variate_lattice lattice;
  int64_t chains;
  int64_t sweeps;
  int64_t first_step; /* taken modulo 2^32 */
  variate_tensor beta;
  variate_tensor coupling;
  variate_tensor field;
  const uint32_t* bonds;
  uint32_t* words;
  double* moments;
  int64_t measure_every; /* at least 1 */
} variate_ising_gibbs_args;

VARIATE_API variate_status variate_ising_gibbs(const variate_ising_gibbs_args* args);
VARIATE_API uint64_t variate_ising_gibbs_workspace(const variate_ising_gibbs_args* args);

/* sums[chain] = the sum of the spins, the sum over bonds of bond spin spin'. correlation[chain, r - 1] = the sum over
   sites of spin(x) spin(x + r), r = 1, ..., distance < width; of an open lattice those where both exist.
   sums: [chains, 2]; correlation: [chains, distance], NULL where distance is 0. */
typedef struct variate_ising_measure_args {
  uint32_t struct_size;
  variate_execution execution;
  variate_lattice lattice;
  int64_t chains;
  const uint32_t* bonds;
  const uint32_t* words;
  int64_t* sums;
  int64_t distance;
  int64_t* correlation;
} variate_ising_measure_args;

VARIATE_API variate_status variate_ising_measure(const variate_ising_measure_args* args);
VARIATE_API uint64_t variate_ising_measure_workspace(const variate_ising_measure_args* args);

#ifdef __cplusplus
}
#endif

#endif
