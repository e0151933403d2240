#include <variate/math/ema.hpp>

#include "kernels.h"
#include "tile.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

constexpr int64_t chunk_elements = 16 * tile_elements;

int64_t chunks_of(int64_t size) { return (size + chunk_elements - 1) / chunk_elements; }

variate_tensor flat(const void* data, variate_dtype dtype) { return {const_cast<void*>(data), dtype, 0, 1}; }

template <bool far, class T>
void update(T* __restrict average, const T* __restrict parameter, T weight, T keep, int64_t count) {
  for (int64_t i = 0; i < count; ++i) average[i] = math::average<far>(average[i], parameter[i], weight, keep);
}

template <class T>
void update_tile(const variate_tensor& average, const variate_tensor& parameter, double decay, const Tile& t) {
  Buffer<T> parameter_buffer, average_buffer;
  const T* p = load(parameter, t, parameter_buffer);
  const T weight = static_cast<T>(1.0 - decay), keep = static_cast<T>(decay);
  // Loaded in place or into the buffer, either way writable.
  T* a = const_cast<T*>(load(average, t, average_buffer));
  if (decay > 0.5) {
    update<false>(a, p, weight, keep, t.count);
  } else {
    update<true>(a, p, weight, keep, t.count);
  }
  store(average, t, static_cast<const T*>(a));
}

void update_chunk(const variate_ema_update_args& a, int64_t tensor, int64_t chunk) {
  const int64_t begin = chunk * chunk_elements, size = a.sizes[tensor];
  const int64_t end = size - begin < chunk_elements ? size : begin + chunk_elements;
  const variate_tensor parameter = flat(a.parameters[tensor], a.parameter_dtypes[tensor]);
  for (int64_t col = begin; col < end; col += tile_elements) {
    Tile t;
    t.row = 0;
    t.rows = 1;
    t.col = col;
    t.cols = end - col < tile_elements ? end - col : tile_elements;
    t.pitch = (t.cols + 3) / 4 * 4;
    t.count = (t.pitch + lane_multiple - 1) / lane_multiple * lane_multiple;
    for (int64_t k = 0; k < a.profiles; ++k) {  // the parameter's tile stays in the cache
      const int64_t at = k * a.tensors + tensor;
      const variate_tensor average = flat(a.averages[at], a.average_dtypes[at]);
      const double decay = element<double>(a.decay, k, 0);
      average.dtype == VARIATE_FLOAT64 ? update_tile<double>(average, parameter, decay, t)
                                       : update_tile<float>(average, parameter, decay, t);
    }
  }
}

// Chunks [begin, end) of all those of the tensors, one tensor after the other.
void update_chunks(const variate_ema_update_args& a, int64_t begin, int64_t end) {
  int64_t first = 0;  // of the tensor
  for (int64_t i = 0; i < a.tensors && first < end; ++i) {
    const int64_t count = chunks_of(a.sizes[i]);
    const int64_t from = begin > first ? begin - first : 0, to = end - first < count ? end - first : count;
    for (int64_t chunk = from; chunk < to; ++chunk) update_chunk(a, i, chunk);
    first += count;
  }
}

}  // namespace

void ema_update(const variate_ema_update_args& a) {
  int64_t chunks = 0, elements = 0;
  for (int64_t i = 0; i < a.tensors; ++i) {
    chunks += chunks_of(a.sizes[i]);
    elements += a.sizes[i];
  }
  const int64_t threads = a.execution.threads < chunks ? a.execution.threads : chunks;
  if (threads <= 1 || elements < parallel_grain) return update_chunks(a, 0, chunks);
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads))
  for (int64_t thread = 0; thread < threads; ++thread) {
    update_chunks(a, chunks * thread / threads, chunks * (thread + 1) / threads);
  }
}

}  // namespace variate::cpu::VARIATE_ISA
