// Where the threads of a launch go, and the launch itself.
#pragma once

#include <cuda_runtime.h>
#include <variate/core.h>

#include <algorithm>
#include <cstdint>

#include "../api/error.h"

namespace variate::cuda {

inline constexpr int block_threads = 256;  // of every kernel that does not say otherwise

#if defined(__CUDACC__)
extern __shared__ uint4 dynamic_shared[];  // what a launch asked for
#endif

// Enqueues `kernel` with blocks of `threads` and dynamic shared memory. A launch that fails leaves its reason in the
// last error.
template <class... Parameters, class... Arguments>
variate_status launch_config(const variate_execution& execution, void (*kernel)(Parameters...), int64_t blocks,
                             int threads, uint64_t shared_bytes, const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(execution.stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error == cudaSuccess) return VARIATE_OK;
  cudaGetLastError();  // so that the caller's next check does not find this one again
  set_error("CUDA: the kernel did not launch: %s", cudaGetErrorString(error));
  return VARIATE_DEVICE_ERROR;
}

template <class... Parameters, class... Arguments>
variate_status launch(const variate_execution& execution, void (*kernel)(Parameters...), int64_t blocks,
                      const Arguments&... arguments) {
  return launch_config(execution, kernel, blocks, block_threads, 0, arguments...);
}

// Four consecutive columns of a row: one Philox counter, one vector access.
struct Position {
  int64_t row;
  int64_t quad;
};

__host__ __device__ inline int quad_count(int64_t cols, int64_t quad) {
  const int64_t left = cols - 4 * quad;
  return left < 4 ? static_cast<int>(left) : 4;
}

// Pointwise kernels: the quads of a [rows, cols] view, each visited once by a grid of any size. One division places a
// thread; a step of the grid is an addition and a carry.
struct Plane {
  int64_t rows;
  int64_t cols;
  int64_t quads;  // of a row
  Position step;

  Plane(int64_t rows, int64_t cols) : rows(rows), cols(cols), quads((cols + 3) / 4), step{0, 0} {}

  __host__ __device__ Position start(int64_t thread) const { return {thread / quads, thread % quads}; }
  __host__ __device__ bool contains(Position p) const { return p.row < rows; }
  __host__ __device__ int count(Position p) const { return quad_count(cols, p.quad); }
  __host__ __device__ Position next(Position p) const {
    p.row += step.row;
    p.quad += step.quad;
    if (p.quad >= quads) {
      p.quad -= quads;
      ++p.row;
    }
    return p;
  }
};

__device__ inline int64_t thread_index() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

// Launches a pointwise kernel whose first parameter is its plane. `unroll` is how many quads a thread has in flight.
template <class... Parameters, class... Arguments>
variate_status launch_plane(const variate_execution& execution, void (*kernel)(Plane, Parameters...), int unroll,
                            Plane plane, const Arguments&... arguments) {
  constexpr int64_t blocks_per_multiprocessor = 32;  // a few waves: the hardware evens them out
  int device = 0;
  int multiprocessors = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  const int64_t one_each = (plane.rows * plane.quads + block_threads - 1) / block_threads;
  const int64_t full = (one_each + unroll - 1) / unroll;
  const int64_t spread = std::min<int64_t>(one_each, multiprocessors);  // small work goes to as many as it fills
  const int64_t blocks = std::min(std::max(full, spread), blocks_per_multiprocessor * multiprocessors);
  plane.step = plane.start(blocks * block_threads);
  return launch(execution, kernel, blocks, plane, arguments...);
}

}  // namespace variate::cuda
