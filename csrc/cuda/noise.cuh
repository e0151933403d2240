// The noise of a call on the device: noise version 1, as in variate/math/random.hpp.
#pragma once

#include <variate/core.h>
#include <variate/math/random.hpp>

#include "access.cuh"

namespace variate::cuda {

__device__ __forceinline__ math::Key load_key(const variate_noise& noise, int64_t row) {
  const int64_t* key = noise.key + row * noise.key_stride;
  return {static_cast<uint64_t>(__ldg(key)), static_cast<uint64_t>(__ldg(key + 1))};
}

// With one key for all rows, which the dense kernels ask for, a thread reads it once and its counters share the key
// schedule. Otherwise it is looked up row by row.
template <bool one_key>
struct Stream {
  variate_noise noise;
  math::Key key;

  __device__ __forceinline__ explicit Stream(const variate_noise& noise) : Stream(noise, load_key(noise, 0)) {}
  __device__ __forceinline__ Stream(const variate_noise& noise, const math::Key& key) : noise(noise), key(key) {}

  __device__ __forceinline__ math::Key key_of(int64_t row) const {
    if constexpr (one_key) return key;
    return noise.key_stride == 0 ? key : load_key(noise, row);
  }

  __device__ __forceinline__ uint32_t sample_of(int64_t row) const {
    if (!one_key && noise.key_stride != 0) return 0;
    return static_cast<uint32_t>(noise.first_sample + row);
  }

  __device__ __forceinline__ math::Words words(int64_t row, int64_t quad, uint32_t step = 0) const {
    return math::noise_words(key_of(row), static_cast<uint64_t>(quad), sample_of(row), step);
  }
};

__device__ __forceinline__ Quad<float> normal_quad(const math::Words& words) {
  const math::Normals n = math::normals(words);
  return {{n.x[0], n.x[1], n.x[2], n.x[3]}};
}

}  // namespace variate::cuda
