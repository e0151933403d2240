/* Draws from a key: words, uniforms, normals and what is made of them. Math: variate/math/random.hpp. */
#ifndef VARIATE_RANDOM_H
#define VARIATE_RANDOM_H

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* out[r, c] is drawn for element c of sample first_sample + r. */
typedef struct variate_random_args {
  uint32_t struct_size; /* sizeof(variate_random_args) */
  variate_execution execution;
  variate_noise noise;
  int64_t rows;
  int64_t cols;
  variate_tensor out;
} variate_random_args;

/* The 32-bit words themselves, as int64 in [0, 2^32). */
VARIATE_API variate_status variate_bits(const variate_random_args* args);
/* (word + 1/2) 2^-32 in (0, 1]. Floating dtypes, here and below. */
VARIATE_API variate_status variate_uniform(const variate_random_args* args);
/* The standard normal, by Box-Muller. */
VARIATE_API variate_status variate_normal(const variate_random_args* args);
/* The exponential of rate 1, always positive. */
VARIATE_API variate_status variate_exponential(const variate_random_args* args);
/* The standard Gumbel. */
VARIATE_API variate_status variate_gumbel(const variate_random_args* args);

/* out[r, c] = 1 with probability probs[r, c], else 0; never at 0, always at 1 and above, NaN at NaN.
   out: any dtype; a NaN is 0 in integers. */
typedef struct variate_bernoulli_args {
  uint32_t struct_size;
  variate_execution execution;
  variate_noise noise;
  int64_t rows;
  int64_t cols;
  variate_tensor probs;
  variate_tensor out;
} variate_bernoulli_args;

VARIATE_API variate_status variate_bernoulli(const variate_bernoulli_args* args);

/* out[r, c] is uniform over low ... high - 1, 0 < high - low <= 2^32, each integer's probability exact to a relative
   2^-32. The rare element that 32 bits do not decide takes a word of fold_in(key, 1). out: int64. */
typedef struct variate_randint_args {
  uint32_t struct_size;
  variate_execution execution;
  variate_noise noise;
  int64_t rows;
  int64_t cols;
  int64_t low;
  int64_t high;
  variate_tensor out;
} variate_randint_args;

VARIATE_API variate_status variate_randint(const variate_randint_args* args);

/* out[r, g] = argmax over k of logits[r, g * categories + k] + gumbel, the first of equals, a NaN before all.
   logits: [rows, groups * categories], floating. out: int64 [rows, groups]. */
typedef struct variate_categorical_args {
  uint32_t struct_size;
  variate_execution execution;
  variate_noise noise;
  int64_t rows;
  int64_t groups;
  int64_t categories;
  variate_tensor logits;
  variate_tensor out;
} variate_categorical_args;

VARIATE_API variate_status variate_categorical(const variate_categorical_args* args);

/* out[r] = the key derived from keys[r] and data[r]. keys, out: int64 [rows, 2]; data: int64 [rows, 1]. */
typedef struct variate_fold_in_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t rows;
  variate_tensor keys;
  variate_tensor data;
  variate_tensor out;
} variate_fold_in_args;

VARIATE_API variate_status variate_fold_in(const variate_fold_in_args* args);

#ifdef __cplusplus
}
#endif

#endif
