/* What every call of the library shares: status codes, tensors, noise, where to run. */
#ifndef VARIATE_CORE_H
#define VARIATE_CORE_H

#include <stdint.h>

#define VARIATE_VERSION_MAJOR 0
#define VARIATE_VERSION_MINOR 1
#define VARIATE_VERSION_PATCH 0

/* The version of the noise stream: which draw an element gets. A change of it is a major release. */
#define VARIATE_NOISE_VERSION 1

#if defined(VARIATE_BUILDING)
#define VARIATE_API __attribute__((visibility("default")))
#else
#define VARIATE_API
#endif

/* Enumerations are ints in C++ as they are in C, so that the library may read, and refuse, any value. */
#ifdef __cplusplus
#define VARIATE_INT : int
#else
#define VARIATE_INT
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum variate_status VARIATE_INT {
  VARIATE_OK = 0,
  VARIATE_INVALID_ARGUMENT = 1, /* a field is out of range; nothing was written */
  VARIATE_UNSUPPORTED = 2,      /* this build or machine cannot run it */
  VARIATE_DEVICE_ERROR = 3      /* CUDA reported an error */
} variate_status;

/* What went wrong in this thread's last call that did not return VARIATE_OK. Valid until the thread's next call. */
VARIATE_API const char* variate_last_error(void);

/* "major.minor.patch" of the library that is loaded, where VARIATE_VERSION_* are those of this header. */
VARIATE_API const char* variate_version(void);

/* The instruction set in use: "portable", "avx2", "avx512" or "amx", AVX-512 with tiles. The first call chooses it,
   from the processor, the operating system's saved state and the environment variable VARIATE_CPU. */
VARIATE_API const char* variate_cpu_capability(void);

/* Every instruction set this machine can run, best last, separated by spaces. */
VARIATE_API const char* variate_cpu_capabilities(void);

/* The CUDA architectures built in, as in "80 90", or "" without CUDA. */
VARIATE_API const char* variate_cuda_architectures(void);

/* 1 where the CPU kernels use OpenMP threads. */
VARIATE_API int variate_has_openmp(void);

typedef enum variate_dtype VARIATE_INT {
  VARIATE_FLOAT32 = 0,
  VARIATE_FLOAT64 = 1,
  VARIATE_BFLOAT16 = 2,
  VARIATE_FLOAT16 = 3,
  VARIATE_UINT8 = 4,
  VARIATE_INT64 = 5
} variate_dtype;

/* A [rows, cols] view; strides count elements and may be 0. `data` is NULL for a tensor that is left out. */
typedef struct variate_tensor {
  void* data;
  variate_dtype dtype;
  int64_t row_stride;
  int64_t col_stride;
} variate_tensor;

/* What a call's spread tensor holds: log sigma^2, log sigma, or sigma itself. */
typedef enum variate_parametrization VARIATE_INT {
  VARIATE_LOG_VAR = 0,
  VARIATE_LOG_SCALE = 1,
  VARIATE_SCALE = 2
} variate_parametrization;

/* What the values of a distribution's argument must be. NaN is none of it. */
typedef enum variate_constraint VARIATE_INT {
  VARIATE_REAL = 0, /* or infinite */
  VARIATE_POSITIVE = 1,
  VARIATE_NONNEGATIVE = 2,
  VARIATE_UNIT_INTERVAL = 3,
  VARIATE_BOOLEAN = 4 /* 0 or 1 */
} variate_constraint;

/* Where the noise of a call comes from. Row r of the call is sample first_sample + r; its element e is column e. */
typedef struct variate_noise {
  const int64_t* key;   /* (seed, offset), on the device of the call */
  int64_t key_stride;   /* 0: one key for all rows. 2: a key per row, and each row is sample 0 of its own stream */
  int64_t first_sample; /* 0 <= first_sample, first_sample + rows <= 2^32; 0 with a key per row */
} variate_noise;

typedef enum variate_device VARIATE_INT { VARIATE_CPU = 0, VARIATE_CUDA = 1 } variate_device;

/* Where a call runs. Every pointer of the call is on that device. A call never allocates device memory and never
   waits for the device: what variate_<op>_workspace() asks for is the caller's. */
typedef struct variate_execution {
  variate_device device;
  int32_t threads; /* CPU: how many threads, at most 4096; 0 means 1 */
  void* stream;    /* CUDA: a cudaStream_t */
  void* workspace; /* at least variate_<op>_workspace() bytes, 16-byte aligned; may be NULL where that is 0 */
  uint64_t workspace_bytes;
} variate_execution;

#ifdef __cplusplus
}
#endif

#endif
