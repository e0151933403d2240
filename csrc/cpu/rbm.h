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

// The rows of another call as of one that makes Gibbs steps.
static inline variate_rbm_gibbs_args rows_of(const variate_rbm_anneal_args& a) {
  static const float one = 1.0f;
  variate_rbm_gibbs_args rows = {};
  rows.execution = a.execution;
  rows.noise = a.noise;
  rows.rows = a.rows;
  rows.visible_units = a.visible_units;
  rows.hidden_units = a.hidden_units;
  rows.visible_kind = a.visible_kind;
  rows.categories = a.categories;
  rows.steps = a.steps;
  rows.first_step = a.first_step;
  rows.visible = a.visible;
  rows.weight = a.weight;
  rows.visible_bias = a.visible_bias;
  rows.hidden_bias = a.hidden_bias;
  rows.beta = {const_cast<float*>(&one), VARIATE_FLOAT32, 0, 0};
  return rows;
}

// The same of tempering, for sizes that do not overflow.
static inline variate_rbm_gibbs_args rows_of(const variate_rbm_temper_args& a) {
  variate_rbm_anneal_args rest = {};
  rest.execution = a.execution;
  rest.noise = a.noise;
  rest.noise.first_sample *= a.temperatures;
  rest.rows = a.chains * a.temperatures;
  rest.visible_units = a.visible_units;
  rest.hidden_units = a.hidden_units;
  rest.visible_kind = a.visible_kind;
  rest.categories = a.categories;
  rest.steps = a.rounds * a.steps;
  rest.first_step = a.first_round * a.steps;
  rest.visible = a.visible;
  rest.weight = a.weight;
  rest.visible_bias = a.visible_bias;
  rest.hidden_bias = a.hidden_bias;
  variate_rbm_gibbs_args rows = rows_of(rest);
  rows.hidden = a.hidden;
  return rows;
}

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
  float *base, *gap;       // of annealing: the biases of the independent units, and the machine's own minus those
  float *middle, *radius;  // a logit from the upper two limbs lies within `radius` of itself plus `middle`
  int8_t* limbs;  // [2, out_padded / 16, in_padded / 64, 2, 16, 64]: tiles of a matrix unit, upper halves first
};

// What one thread works in.
struct RbmScratch {
  uint8_t *visible, *hidden;  // [room, padded units], 0 or 1; room: the chunk, up to whole tiles
  uint8_t* index;             // [padded units / 64, room, 16]: sixteen times four states as a number
  int32_t* sums;              // [2, room, 32]
  float *best, *field;        // [room]: the highest score so far of a group of categories, the field in it,
  int32_t* winner;            // and whose it is
  double* energy;             // [room]
};

struct RbmPlan {
  int64_t group, groups;
  int threads;
  int64_t chunk;  // rows that a thread takes through a call at once
  RbmDirection to_hidden, to_visible;
  int64_t* visible_keys;
  float* betas;  // [rows], of tempering
  RbmScratch first_scratch;
  uint64_t scratch_bytes;
  uint64_t bytes;

  // A thread has whole groups of rows: those of a chain at all temperatures, if there are any.
  RbmPlan(const variate_rbm_gibbs_args& a, uint64_t base, int64_t temperatures = 0)
      : group(temperatures > 0 ? temperatures : rbm_group) {
    groups = (a.rows + group - 1) / group;
    threads = a.execution.threads > 1 ? a.execution.threads : 1;
    if (threads > groups) threads = static_cast<int>(groups);
    const int64_t share = threads > 0 ? (groups + threads - 1) / threads : 0;
    const int64_t most = group < rbm_chunk ? rbm_chunk / group : 1;
    chunk = (share < most ? share : most) * group;
    const int64_t room = (chunk + rbm_group - 1) / rbm_group * rbm_group;
    RbmArena arena{base};
    layer(to_hidden, a.visible_units, a.hidden_units, arena);
    layer(to_visible, a.hidden_units, a.visible_units, arena);
    to_hidden.columns = to_visible.panels;
    to_visible.columns = to_hidden.panels;
    visible_keys = arena.take<int64_t>(a.noise.key_stride ? 2 * a.rows : 2);
    betas = arena.take<float>(temperatures > 0 ? a.rows : 0);
    const uint64_t start = (arena.at + 63) / 64 * 64;
    const int64_t v = to_hidden.in_padded, h = to_hidden.out_padded;
    first_scratch.visible = arena.take<uint8_t>(room * v);
    first_scratch.hidden = arena.take<uint8_t>(room * h);
    first_scratch.index = arena.take<uint8_t>(room * (v > h ? v : h) / 4);
    first_scratch.sums = arena.take<int32_t>(room * rbm_units);
    first_scratch.best = arena.take<float>(room);
    first_scratch.field = arena.take<float>(room);
    first_scratch.winner = arena.take<int32_t>(room);
    first_scratch.energy = arena.take<double>(room);
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
    s.field += offset / sizeof(float);
    s.winner += offset / sizeof(int32_t);
    s.energy += offset / sizeof(double);
    return s;
  }

 private:
  static void layer(RbmDirection& d, int64_t in, int64_t out, RbmArena& arena) {
    d.in = in;
    d.out = out;
    d.in_padded = rbm_padded(in);
    d.out_padded = rbm_padded(out);
    d.panels = arena.take<float>(d.in_padded * d.out_padded);
    for (float** row : {&d.scale, &d.inverse, &d.offset, &d.bias, &d.unit, &d.base, &d.gap, &d.middle, &d.radius}) {
      *row = arena.take<float>(d.out_padded);
    }
    d.fixed_bias = arena.take<int32_t>(d.out_padded);
    d.shift = arena.take<int32_t>(d.out_padded);
    d.limbs = arena.take<int8_t>(in <= rbm_limb_inputs ? 4 * d.in_padded * d.out_padded : 0);
  }
};

}  // namespace

}  // namespace variate::cpu
