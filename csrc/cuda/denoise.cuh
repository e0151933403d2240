// What a denoising step is made of: the coefficients of an element, guidance, noise scaled by a variance, and the
// counter.
#pragma once

#include <variate/denoise.h>
#include <variate/math/elementary.hpp>

#include "access.cuh"

namespace variate::cuda {

// Which row of the table an element is of: one for all; one for each four columns; or one for each.
enum class Rows { one, quads, any };

template <class M>
__device__ __forceinline__ M each(M c, int) {
  return c;
}
template <class M>
__device__ __forceinline__ M each(const Quad<M>& c, int i) {
  return c.x[i];
}
template <class M>
__device__ __forceinline__ bool reads(M c) {
  return c != M(0);
}
template <class M>
__device__ __forceinline__ bool reads(const Quad<M>& c) {
  return reads(c.x[0]) || reads(c.x[1]) || reads(c.x[2]) || reads(c.x[3]);
}

// The table of a call, and how its rows are found.
struct Table {
  const double* coefficients;
  int64_t size;
  int64_t row;
  variate_tensor rows;
  int64_t part;  // columns that share a row

  explicit Table(const variate_denoise_step_args& a)
      : coefficients(a.coefficients),
        size(a.table_size),
        row(a.row),
        rows(a.table_rows),
        part(a.table_rows.data ? a.cols / a.table_row_tokens : a.cols) {}

  // nullptr outside the table.
  __device__ __forceinline__ const double* find(int64_t sample, int64_t col) const {
    int64_t at = row;
    if (rows.data) {
      at = __ldg(static_cast<const int64_t*>(rows.data) + sample * rows.row_stride + col / part * rows.col_stride);
    }
    return at >= 0 && at < size ? coefficients + at * VARIATE_DENOISE_COLUMNS : nullptr;
  }

  template <class M>
  static __device__ __forceinline__ M load(const double* row, int column) {
    return row ? static_cast<M>(__ldg(row + column)) : static_cast<M>(__int_as_float(0x7fc00000));
  }
};

// The coefficients of a quad.
template <class M, Rows kind>
struct Coefficients;

template <class M>
struct Coefficients<M, Rows::one> {
  const M* shared;
  __device__ __forceinline__ Coefficients(const Table&, const M* shared, int64_t, int64_t, int) : shared(shared) {}
  __device__ __forceinline__ M operator[](int column) const { return shared[column]; }
};

template <class M>
struct Coefficients<M, Rows::quads> {
  const double* row;
  __device__ __forceinline__ Coefficients(const Table& table, const M*, int64_t sample, int64_t quad, int)
      : row(table.find(sample, 4 * quad)) {}
  __device__ __forceinline__ M operator[](int column) const { return Table::load<M>(row, column); }
};

template <class M>
struct Coefficients<M, Rows::any> {
  const double* row[4];
  __device__ __forceinline__ Coefficients(const Table& table, const M*, int64_t sample, int64_t quad, int count) {
#pragma unroll
    for (int i = 0; i < 4; ++i) row[i] = table.find(sample, 4 * quad + (i < count ? i : 0));
  }
  __device__ __forceinline__ Quad<M> operator[](int column) const {
    Quad<M> c;
#pragma unroll
    for (int i = 0; i < 4; ++i) c.x[i] = Table::load<M>(row[i], column);
    return c;
  }
};

// sum + c x, rounded once; nothing where c is 0.
template <class M, class C>
__device__ __forceinline__ void add(Quad<M>& sum, const C& c, const Quad<M>& x) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const M k = each(c, i);
    if (k != M(0)) sum.x[i] = math::fma(k, x.x[i], sum.x[i]);
  }
}

// NaN passes through.
template <class M>
__device__ __forceinline__ M clamp_to(M x, M bound) {
  x = x < -bound ? -bound : x;
  return x > bound ? bound : x;
}

template <class M>
__device__ __forceinline__ M load_guidance(const variate_tensor& tensor, double value) {
  return tensor.data ? load_row<M>(tensor, 0) : static_cast<M>(value);
}

template <class M>
__device__ __forceinline__ Quad<M> guide(const Quad<M>& conditional, const Quad<M>& unconditional, M guidance) {
  Quad<M> m;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    m.x[i] = math::fma(guidance, conditional.x[i] - unconditional.x[i], unconditional.x[i]);
  }
  return m;
}

template <class M, class C>
__device__ __forceinline__ void scale_noise(Quad<M>& n, const Quad<M>& v, variate_denoise_variance kind, const C& c) {
  if (kind == VARIATE_VARIANCE_LEARNED) {
#pragma unroll
    for (int i = 0; i < 4; ++i) n.x[i] *= math::sqrt(v.x[i]);
  } else {
    const auto least = c[VARIATE_DENOISE_MIN_LOG_VARIANCE], most = c[VARIATE_DENOISE_MAX_LOG_VARIANCE];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const M low = each(least, i), share = math::fma(M(0.5), v.x[i], M(0.5));
      n.x[i] *= math::exp(M(0.5) * math::fma(share, each(most, i) - low, low));
    }
  }
}

// Every block of a launch takes a ticket when it has read its counters; the one that takes the last adds 1 to them.
struct Ticket {
  int64_t* counter;
  int64_t count;  // of counters
  int64_t step;

  __device__ __forceinline__ bool take() const {
    __threadfence();
    const auto tickets = reinterpret_cast<unsigned long long*>(counter + 1);
    const bool last = atomicAdd(tickets, 1ull) == gridDim.x - 1;
    __threadfence();
    return last;
  }

  // Of one counter, which thread 0 advances while the others work.
  __device__ __forceinline__ void advance_one() const {
    if (threadIdx.x != 0 || !take()) return;
    counter[0] = step + 1;
    counter[1] = 0;
  }

  // Of one for each row, at the end.
  __device__ __forceinline__ void advance_all() const {
    __syncthreads();
    if (threadIdx.x >= 32) return;
    const int last = __shfl_sync(0xffffffffu, threadIdx.x == 0 && take(), 0);
    if (!last) return;
    __threadfence();
    for (int64_t i = threadIdx.x; i < count; i += 32) ++counter[2 * i];
    __syncwarp();
    if (threadIdx.x == 0) counter[1] = 0;
  }
};

}  // namespace variate::cuda
