/* Exponential moving averages of a model's parameters. */
#ifndef VARIATE_EMA_H
#define VARIATE_EMA_H

#include "core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* a <- decay a + (1 - decay) p for every element of every tensor, and for every profile: averages with a decay of their
   own. With w = 1 - decay, and in float32, or float64 where a is,
     a <- fma(w, p - a, a)        for w < 1/2
     a <- fma(-decay, p - a, p)   else
   so that a decay of 1 keeps a, one of 0 gives p, and p = a stays.
   averages[k * tensors + i] is tensor i of profile k; it and parameters[i] hold sizes[i] elements one after the other,
   floating. decay: float32 or float64 [profiles, 1], on the device of the call. The arrays are the host's. */
typedef struct variate_ema_update_args {
  uint32_t struct_size;
  variate_execution execution;
  int64_t tensors;
  int64_t profiles;
  const int64_t* sizes;                  /* [tensors] */
  void* const* averages;                 /* [profiles * tensors] */
  const variate_dtype* average_dtypes;   /* [profiles * tensors] */
  const void* const* parameters;         /* [tensors] */
  const variate_dtype* parameter_dtypes; /* [tensors] */
  variate_tensor decay;
} variate_ema_update_args;

VARIATE_API variate_status variate_ema_update(const variate_ema_update_args* args);

#ifdef __cplusplus
}
#endif

#endif
