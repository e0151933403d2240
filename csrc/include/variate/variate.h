/* The C API of libvariate: fill a struct, set its struct_size, call, look at the status. */
#ifndef VARIATE_VARIATE_H
#define VARIATE_VARIATE_H

#include "bound.h"
#include "core.h"
#include "denoise.h"
#include "diffusion.h"
#include "elbo.h"
#include "ema.h"
#include "lattice.h"
#include "linear.h"
#include "logistic.h"
#include "potts.h"
#include "random.h"
#include "rbm.h"
#include "relaxed.h"
#include "reparam.h"

#endif
