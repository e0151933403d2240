// The workspace of a call of the Boltzmann machine. It depends on the shapes and threads alone, not on the kernels.
#pragma once

#include <variate/variate.h>

#include <initializer_list>

namespace variate::cpu {

inline constexpr int64_t rbm_units = 64;           // a layer is padded to whole panels of this many units
inline constexpr int64_t rbm_group = 32;           // chains that a matrix unit takes together
inline constexpr int64_t rbm_chunk = 1024;         // chains whose states stay in the second-level cache
inline constexpr int64_t rbm_limb_inputs = 65535;  // with more, 16 bits a weight no longer sum to 31

static inline int64_t rbm_padded(int64_t units) { return (units + rbm_units - 1) / rbm_units * rbm_units; }

namespace {  // a copy for each file, compiled for its instruction set

// Gives out 64-byte aligned parts of a buffer that begins at `base`; with base 0 it counts.
struct RbmArena {
  uint64_t at;

  template <class T>
  T* take(int64_t count) {
    const uint64_t start = (at + 63) / 64 * 64;
    at = start + static_cast<uint64_t>(count) * sizeof(T);
    return reinterpret_cast<T*>(start);
  }
};

// One half of a step: the units of one layer given those of the other.
struct RbmDirection {
  int64_t in, out, in_padded, out_padded;
  float* panels;           // [out_padded / 64, in_padded, 64]: weights
  const float* columns;    // the other direction's panels, where an output's weights are in rows of 64
  float *scale, *inverse;  // [out_padded]: 2^e and 2^-e
  float* offset;           // 0, or what is infinite of the bias
  float* bias;             // as it was given
  int32_t* fixed_bias;     // in fixed point
  int32_t* shift;          // what is left of a weight without its lower limbs: weight >> shift, 16 bits
  float* unit;             // 2^(shift - e)
  float *middle, *radius;  // a logit from the upper two limbs lies within `radius` of itself plus `middle`
  int8_t* limbs;  // [2, out_padded / 16, in_padded / 64, 2, 16, 64]: tiles of a matrix unit, upper halves first
};

// What one thread works in.
struct RbmScratch {
  uint8_t *visible, *hidden;  // [chunk, padded units], 0 or 1
  uint8_t* index;             // [padded units / 64, chunk, 16]: sixteen times four states as a number
  int32_t* sums;              // [2, chunk, 32]
  float* best;                // [chunk]: the highest score so far of a group of categories, and whose it is
  int32_t* winner;
};

struct RbmPlan {
  int threads;
  int64_t chunk;  // a multiple of rbm_group
  RbmDirection to_hidden, to_visible;
  int64_t* visible_keys;
  RbmScratch first_scratch;
  uint64_t scratch_bytes;
  uint64_t bytes;

  RbmPlan(const variate_rbm_gibbs_args& a, uint64_t base) {
    const int64_t groups = (a.rows + rbm_group - 1) / rbm_group;
    threads = a.execution.threads > 1 ? a.execution.threads : 1;
    if (threads > groups) threads = static_cast<int>(groups);
    const int64_t share = threads > 0 ? (groups + threads - 1) / threads * rbm_group : 0;
    chunk = share < rbm_chunk ? share : rbm_chunk;
    RbmArena arena{base};
    layer(to_hidden, a.visible_units, a.hidden_units, arena);
    layer(to_visible, a.hidden_units, a.visible_units, arena);
    to_hidden.columns = to_visible.panels;
    to_visible.columns = to_hidden.panels;
    visible_keys = arena.take<int64_t>(a.noise.key_stride ? 2 * a.rows : 2);
    const uint64_t start = (arena.at + 63) / 64 * 64;
    const int64_t v = to_hidden.in_padded, h = to_hidden.out_padded;
    first_scratch.visible = arena.take<uint8_t>(chunk * v);
    first_scratch.hidden = arena.take<uint8_t>(chunk * h);
    first_scratch.index = arena.take<uint8_t>(chunk * (v > h ? v : h) / 4);
    first_scratch.sums = arena.take<int32_t>(chunk * rbm_units);
    first_scratch.best = arena.take<float>(chunk);
    first_scratch.winner = arena.take<int32_t>(chunk);
    scratch_bytes = (arena.at + 63) / 64 * 64 - start;
    bytes = start + scratch_bytes * static_cast<uint64_t>(threads) - base + 64;
  }

  RbmScratch scratch(int thread) const {
    const uint64_t offset = scratch_bytes * static_cast<uint64_t>(thread);
    RbmScratch s = first_scratch;
    s.visible += offset;
    s.hidden += offset;
    s.index += offset;
    s.sums += offset / sizeof(int32_t);
    s.best += offset / sizeof(float);
    s.winner += offset / sizeof(int32_t);
    return s;
  }

 private:
  static void layer(RbmDirection& d, int64_t in, int64_t out, RbmArena& arena) {
    d.in = in;
    d.out = out;
    d.in_padded = rbm_padded(in);
    d.out_padded = rbm_padded(out);
    d.panels = arena.take<float>(d.in_padded * d.out_padded);
    for (float** row : {&d.scale, &d.inverse, &d.offset, &d.bias, &d.unit, &d.middle, &d.radius}) {
      *row = arena.take<float>(d.out_padded);
    }
    d.fixed_bias = arena.take<int32_t>(d.out_padded);
    d.shift = arena.take<int32_t>(d.out_padded);
    d.limbs = arena.take<int8_t>(in <= rbm_limb_inputs ? 4 * d.in_padded * d.out_padded : 0);
  }
};

}  // namespace

}  // namespace variate::cpu
