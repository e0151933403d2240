// A thread's part of a call: some chains of a Boltzmann machine, their states in scratch memory, and what draws them.
#pragma once

#include <utility>

#include <variate/math/rbm.hpp>

#include "noise.h"
#include "rbm_tables.h"
#include "rbm_weights.h"

#if defined(__AMX_INT8__) && defined(__AMX_TILE__)
#define VARIATE_AMX
#include "rbm_amx.h"
#endif

namespace variate::cpu::VARIATE_ISA {

namespace {

constexpr int64_t rows_at_once = tile_elements / units;  // whose words one buffer holds

struct Machine {
  const variate_rbm_gibbs_args& a;
  RbmPlan plan;
  bool exact_hidden, exact_visible;  // whether a layer's fields are wanted, not only what they are compared with
  variate_noise hidden_noise = a.noise, visible_noise = a.noise;

  bool gaussian() const { return a.visible_kind == VARIATE_VISIBLE_GAUSSIAN; }
  bool categorical() const { return a.visible_kind == VARIATE_VISIBLE_CATEGORICAL; }
};

// Up to 16 chains from `row` on, and the 64 outputs of a panel.
struct Patch {
  int64_t row;    // of the call
  int64_t local;  // of the thread's chunk
  int64_t rows;
  int64_t first;  // output
};

inline const uint32_t* patch_words(const variate_noise& noise, const Patch& p, uint32_t step, WordBuffer& buffer) {
  Tile t;
  t.row = p.row;
  t.rows = p.rows;
  t.col = p.first;
  t.cols = t.pitch = units;
  t.count = p.rows * units;
  return tile_words(noise, t, buffer, 0, step);
}

inline float beta_of(const Machine& m, int64_t row) {
  return static_cast<const float*>(m.a.beta.data)[row * m.a.beta.row_stride];
}

inline void logits_of(const RbmDirection& d, int64_t first, const int32_t* __restrict sums, float* __restrict out) {
  const float* __restrict inverse = d.inverse + first;
  const float* __restrict offset = d.offset + first;
  for (int64_t c = 0; c < units; ++c) out[c] = math::logit(sums[c], inverse[c], offset[c]);
}

inline void store_probs(const variate_tensor& probs, const RbmDirection& d, const Patch& p, int64_t r,
                        const float* from) {
  if (!probs.data) return;
  float* to = static_cast<float*>(probs.data) + (p.row + r) * probs.row_stride + p.first;
  std::memcpy(to, from, sizeof(float) * least(units, d.out - p.first));
}

// Keeps the clamped of `count` states.
template <class T>
inline void keep_clamped(const Machine& m, int64_t row, int64_t first, int64_t count, const T* before, T* after) {
  const variate_tensor& clamp = m.a.clamp;
  if (!clamp.data) return;
  const uint8_t* mask = static_cast<const uint8_t*>(clamp.data) + row * clamp.row_stride + first * clamp.col_stride;
  for (int64_t c = 0; c < count; ++c) after[c] = mask[c * clamp.col_stride] ? before[c] : after[c];
}

// Eight sums or products in float64, so that their order depends on nothing.
typedef double Doubles __attribute__((vector_size(64)));

inline Doubles widen(const float* from) {
  typedef float Floats __attribute__((vector_size(32), aligned(4), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Floats*>(from), Doubles);
}

inline double sum_of(const Doubles& x) { return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7])); }

// The sum of those of 64 numbers, times `panels`, whose state is 1. What is infinite is the bias of a certain unit, and
// counts as 0.
inline double sum_where(const uint8_t* states, const float* numbers, int64_t panels) {
  Doubles sums = {};
  for (int64_t first = 0; first < panels * units; first += units) {
    float chosen[units];
    for (int64_t c = 0; c < units; ++c) chosen[c] = states[first + c] ? finite_or_zero(numbers[first + c]) : 0.0f;
    for (int64_t c = 0; c < units; c += 8) sums += widen(chosen + c);
  }
  return sum_of(sums);
}

// One row of binary states from its logits.
inline void draw_row(const float* __restrict logits, const uint32_t* __restrict words, float beta,
                     uint8_t* __restrict states, float* __restrict probs) {
  for (int64_t c = 0; c < units; ++c) probs[c] = math::sigmoid(logits[c] * beta);
  uint32_t bits[units];
  for (int64_t c = 0; c < units; ++c) bits[c] = math::below(words[c], probs[c]) ? 1 : 0;
  for (int64_t c = 0; c < units; ++c) states[c] = static_cast<uint8_t>(bits[c]);
}

// States of `count` units, a byte each, from bits and as bits or bytes.
inline void unpack(const uint8_t* __restrict bits, int64_t count, uint8_t* __restrict states) {
  for (int64_t first = 0; first < count; first += 8) {
    const int64_t last = least(8, count - first);
    for (int64_t k = 0; k < last; ++k) states[first + k] = bits[first / 8] >> k & 1;
  }
}

inline void pack(const uint8_t* __restrict states, int64_t count, uint8_t* __restrict bits) {
  for (int64_t first = 0; first < count; first += 8) {  // the states are padded with 0 to whole panels
    unsigned byte = 0;
    for (int64_t k = 0; k < 8; ++k) byte |= static_cast<unsigned>(states[first + k]) << k;
    bits[first / 8] = static_cast<uint8_t>(byte);
  }
}

inline void copy(const uint8_t* __restrict states, int64_t count, uint8_t* __restrict to) {
  std::memcpy(to, states, count);
}

// A thread's part of a call.
class Walk {
 public:
  Walk(const Machine& machine, const RbmScratch& scratch, int64_t row, int64_t rows)
      : m(machine), s(scratch), row_(row), rows_(rows), padded_((rows + rbm_group - 1) / rbm_group * rbm_group) {}

  void load() {
    const RbmDirection& d = m.plan.to_hidden;
    if (m.gaussian()) return;
    std::memset(s.visible, 0, padded_ * d.in_padded);
    for (int64_t r = 0; r < rows_; ++r) {
      const uint8_t* __restrict from = states_of(m.a.visible, r);
      uint8_t* __restrict to = s.visible + r * d.in_padded;
      if (m.a.packed) {
        unpack(from, d.in, to);
        continue;
      }
      if (!m.categorical()) {
        for (int64_t c = 0; c < d.in; ++c) to[c] = from[c] != 0;
        continue;
      }
      for (int64_t g = 0; g < d.in / m.a.categories; ++g) {
        if (from[g] < m.a.categories) to[g * m.a.categories + from[g]] = 1;
      }
    }
  }

  void hidden(uint32_t step, bool last) {
    const RbmDirection& d = m.plan.to_hidden;
    const variate_tensor probs = last ? m.a.hidden_probs : variate_tensor{};
    if (!m.gaussian()) return binary(d, m.hidden_noise, s.visible, s.hidden, step, probs, nullptr);
    alignas(64) float drawn[units];
    hidden_logits(step, [&](const Patch& p, int64_t r, const float* logits, const uint32_t* words) {
      draw_row(logits, words, beta_of(m, p.row + r), hidden_at(p, r), drawn);
      store_probs(probs, d, p, r, drawn);
    });
  }

  void visible(uint32_t step, bool last) {
    const RbmDirection& d = m.plan.to_visible;
    const variate_tensor probs = last ? m.a.visible_probs : variate_tensor{};
    if (m.a.visible_kind == VARIATE_VISIBLE_BERNOULLI) {
      return binary(d, m.visible_noise, s.hidden, s.visible, step, probs, m.a.clamp.data ? this : nullptr);
    }
    visible_logits(step, [&](const Patch& p, int64_t r, const float* logits, const uint32_t* words) {
      const float beta = beta_of(m, p.row + r);
      draw_visible(p, r, logits, words, beta);
      store_probs(probs, d, p, r, logits);
    });
    if (m.categorical() && probs.data) {
      for (int64_t r = 0; r < rows_; ++r) softmax(floats_of(probs, r), beta_of(m, row_ + r));
    }
  }

  // consume(patch, row, logits, words) for 64 units of one chain after the other.
  template <class Function>
  void hidden_logits(uint32_t step, Function consume) {
    const RbmDirection& d = m.plan.to_hidden;
    if (!m.gaussian()) return exact_logits(d, m.hidden_noise, s.visible, step, consume);
    for (int64_t first = 0; first < d.out_padded; first += units) {
      for (int64_t r = 0; r < rows_; r += rows_at_once) real_logits(d, patch(r, first), step, consume);
    }
  }

  template <class Function>
  void visible_logits(uint32_t step, Function consume) {
    exact_logits(m.plan.to_visible, m.visible_noise, s.hidden, step, consume);
  }

  void store() {
    const RbmDirection& d = m.plan.to_visible;
    const auto keep = m.a.packed ? pack : copy;
    for (int64_t r = 0; r < rows_ && m.a.hidden.data; ++r) {
      keep(s.hidden + r * d.in_padded, d.in, states_of(m.a.hidden, r));
    }
    if (m.gaussian() || d.out == 0 || m.a.steps == 0) return;
    for (int64_t r = 0; r < rows_; ++r) {
      const uint8_t* __restrict from = s.visible + r * d.out_padded;
      uint8_t* __restrict to = states_of(m.a.visible, r);
      if (!m.categorical()) {
        keep(from, d.out, to);
        continue;
      }
      for (int64_t unit = 0; unit < d.out; ++unit) {
        if (from[unit]) to[unit / m.a.categories] = static_cast<uint8_t>(unit % m.a.categories);
      }
    }
  }

  // 64 visible units of one chain, from what they are drawn with. Returns v.logits, over the units or the groups that
  // are drawn whole; Gaussian: v.(logits - v / 2).
  double draw_visible(const Patch& p, int64_t r, const float* logits, const uint32_t* words, float beta) {
    const RbmDirection& d = m.plan.to_visible;
    if (m.gaussian()) return real_visible(d, p, r, logits, words, beta);
    if (m.categorical()) return one_of_many(d, p, r, logits, words, beta);
    alignas(64) float drawn[units];
    uint8_t* states = s.visible + (p.local + r) * d.out_padded + p.first;
    draw_row(logits, words, beta, states, drawn);
    return sum_where(states, logits, 1);
  }

  uint8_t* hidden_at(const Patch& p, int64_t r) const {
    return s.hidden + (p.local + r) * m.plan.to_hidden.out_padded + p.first;
  }

  void swap_rows(int64_t a, int64_t b) {
    const int64_t v = m.plan.to_hidden.in_padded, h = m.plan.to_hidden.out_padded;
    if (m.gaussian()) {
      float *x = floats_of(m.a.visible, a), *y = floats_of(m.a.visible, b);
      for (int64_t c = 0; c < m.a.visible_units; ++c) std::swap(x[c], y[c]);
    } else {
      for (int64_t c = 0; c < v; ++c) std::swap(s.visible[a * v + c], s.visible[b * v + c]);
    }
    for (int64_t c = 0; c < h; ++c) std::swap(s.hidden[a * h + c], s.hidden[b * h + c]);
  }

  double* energy() const { return s.energy; }
  const uint8_t* visible_row(int64_t r) const { return s.visible + r * m.plan.to_hidden.in_padded; }
  const uint8_t* hidden_row(int64_t r) const { return s.hidden + r * m.plan.to_hidden.out_padded; }

 private:
  uint8_t* states_of(const variate_tensor& tensor, int64_t r) const {
    return static_cast<uint8_t*>(tensor.data) + (row_ + r) * tensor.row_stride;
  }
  float* floats_of(const variate_tensor& tensor, int64_t r) const {
    return static_cast<float*>(tensor.data) + (row_ + r) * tensor.row_stride;
  }

  Patch patch(int64_t local, int64_t first) const {
    return {row_ + local, local, least(rows_at_once, rows_ - local), first};
  }

  template <class Function>
  void exact_logits(const RbmDirection& d, const variate_noise& noise, const uint8_t* from, uint32_t step,
                    Function consume) {
    exact_sums(d, from, [&](const Patch& p, const int32_t* sums) {
      WordBuffer buffer;
      const uint32_t* words = patch_words(noise, p, step, buffer);
      alignas(64) float logits[units];
      for (int64_t r = 0; r < p.rows; ++r) {
        logits_of(d, p.first, sums + r * units, logits);
        consume(p, r, logits, words + r * units);
      }
    });
  }

  // consume(patch, sums), sums being [rows, 64], for all patches of a layer.
  template <class Function>
  void exact_sums(const RbmDirection& d, const uint8_t* states, Function consume) {
#if defined(VARIATE_AMX)
    if (has_limbs(d)) return matrix_sums(d, states, consume);
#endif
    make_index(states, padded_, d.in_padded, s.index);
    for (int64_t panel = 0; panel < d.out_padded / units; ++panel) {
      table_sums(d, panel, s.index, padded_, s.sums);
      for (int64_t r = 0; r < rows_; r += rows_at_once) {
        alignas(64) int32_t sums[rows_at_once * units];
        const Patch p = patch(r, panel * units);
        for (int64_t k = 0; k < p.rows; ++k) {
          for (int64_t side = 0; side < 2; ++side) {
            std::memcpy(sums + k * units + side * half, s.sums + (side * padded_ + r + k) * half,
                        sizeof(int32_t) * half);
          }
        }
        consume(p, sums);
      }
    }
  }

#if defined(VARIATE_AMX)
  static constexpr int64_t band = 4;  // panels whose tiles stay in the second-level cache

  // The next layer's states. Those of one patch are decided while the products of the next are made.
  template <class Finish>
  void decide_layer(const RbmDirection& d, const variate_noise& noise, const uint8_t* from, uint8_t* to, uint32_t step,
                    Finish finish, bool clamped) {
    alignas(64) int32_t sums[2][rbm_group * units];
    RowWords words(noise, step);
    Patch current = {};  // the one that is being decided
    const int32_t* decided = nullptr;
    int64_t next = 0;
    const auto decide = [&] {
      if (next >= current.rows) return;
      const int64_t r = next++;
      uint8_t* states = to + (current.local + r) * d.out_padded + current.first;
      uint8_t before[units];
      if (clamped) std::memcpy(before, states, units);
      decide_row(d, current.first, from + (current.local + r) * d.in_padded, beta_of(m, current.row + r),
                 decided + r * units, words.at(current.row + r, current.first), states);
      finish(current, r, before);
    };
    in_memory(from);
    int which = 0;
    const int64_t panels = d.out_padded / units;
    for (int64_t start = 0; start < panels; start += band) {
      for (int64_t r = 0; r < rows_; r += rbm_group) {
        for (int64_t panel = start; panel < least(start + band, panels); ++panel) {
          for (int64_t group = 0; group < 4; ++group) {
            limb_sums<true>(d, from + r * d.in_padded, panel * 4 + group, sums[which], decide);
          }
          while (next < current.rows) decide();
          current = {row_ + r, r, least(rbm_group, rows_ - r), panel * units};
          decided = sums[which];
          next = 0;
          which = 1 - which;
        }
      }
    }
    while (next < current.rows) decide();
  }

  // Exact sums, of all limbs.
  template <class Function>
  void matrix_sums(const RbmDirection& d, const uint8_t* states, Function consume) {
    in_memory(states);
    const int64_t panels = d.out_padded / units;
    for (int64_t start = 0; start < panels; start += band) {
      for (int64_t r = 0; r < rows_; r += rbm_group) {
        for (int64_t panel = start; panel < least(start + band, panels); ++panel) {
          alignas(64) int32_t sums[rbm_group * units], rest[rbm_group * units];
          for (int64_t group = 0; group < 4; ++group) {
            limb_sums<true>(d, states + r * d.in_padded, panel * 4 + group, sums, [] {});
            limb_sums<false>(d, states + r * d.in_padded, panel * 4 + group, rest, [] {});
          }
          const int32_t *bias = d.fixed_bias + panel * units, *shift = d.shift + panel * units;
          for (int64_t i = 0; i < rbm_group; ++i) {
            uint32_t* out = reinterpret_cast<uint32_t*>(sums) + i * units;  // unsigned: parts may wrap, sums do not
            for (int64_t c = 0; c < units; ++c) {
              const uint32_t below = static_cast<uint32_t>(rest[i * units + c]) + static_cast<uint32_t>(bias[c]);
              out[c] = (out[c] << shift[c]) + below;
            }
          }
          for (int64_t part = r; part < least(r + rbm_group, rows_); part += rows_at_once) {
            consume(patch(part, panel * units), sums + (part - r) * units);
          }
        }
      }
    }
  }
#endif

  void binary(const RbmDirection& d, const variate_noise& noise, const uint8_t* from, uint8_t* to, uint32_t step,
              const variate_tensor& probs, const Walk* clamped) {
    const auto finish = [&](const Patch& p, int64_t r, const uint8_t* before) {
      if (!clamped) return;
      uint8_t* after = to + (p.local + r) * d.out_padded + p.first;
      keep_clamped(m, p.row + r, p.first, least(units, d.out - p.first), before, after);
    };
#if defined(VARIATE_AMX)
    if (has_limbs(d) && !probs.data) return decide_layer(d, noise, from, to, step, finish, clamped);
#endif
    alignas(64) float drawn[units];
    exact_logits(d, noise, from, step, [&](const Patch& p, int64_t r, const float* logits, const uint32_t* words) {
      uint8_t* states = to + (p.local + r) * d.out_padded + p.first;
      uint8_t before[units];
      if (clamped) std::memcpy(before, states, units);
      draw_row(logits, words, beta_of(m, p.row + r), states, drawn);
      finish(p, r, before);
      store_probs(probs, d, p, r, drawn);
    });
  }

  // Gaussian visibles: the hidden layer's sums are float32, over the visibles in their order.
  template <class Function>
  void real_logits(const RbmDirection& d, const Patch& p, uint32_t step, Function consume) {
    constexpr int64_t at_once = 4;
    WordBuffer buffer;
    const uint32_t* words = patch_words(m.hidden_noise, p, step, buffer);
    const float* __restrict w = d.panels + p.first * d.in_padded;
    for (int64_t r = 0; r < p.rows; r += at_once) {
      const int64_t count = least(at_once, p.rows - r);
      alignas(64) float logits[at_once][units];
      const float* x[at_once];
      for (int64_t k = 0; k < at_once; ++k) {
        x[k] = d.in > 0 ? floats_of(m.a.visible, p.local + least(r + k, p.rows - 1)) : nullptr;
        for (int64_t c = 0; c < units; ++c) logits[k][c] = d.bias[p.first + c];
      }
      for (int64_t i = 0; i < d.in; ++i) {
        for (int64_t k = 0; k < at_once; ++k) {
          const float value = x[k][i];
          for (int64_t c = 0; c < units; ++c) logits[k][c] = math::fma(value, w[i * units + c], logits[k][c]);
        }
      }
      for (int64_t k = 0; k < count; ++k) consume(p, r + k, logits[k], words + (r + k) * units);
    }
  }

  double real_visible(const RbmDirection& d, const Patch& p, int64_t r, const float* means, const uint32_t* words,
                      float beta) {
    const int64_t count = least(units, d.out - p.first);
    alignas(64) float drawn[units];
    normals_of(words, drawn, units);
    const float spread = 1.0f / math::sqrt(beta);
    for (int64_t c = 0; c < units; ++c) drawn[c] = math::fma(spread, drawn[c], means[c]);
    float* to = floats_of(m.a.visible, p.local + r) + p.first;
    keep_clamped(m, p.row + r, p.first, count, to, drawn);
    std::memcpy(to, drawn, sizeof(float) * count);
    double sum = 0.0;
    for (int64_t c = 0; c < count; ++c) sum += static_cast<double>(drawn[c]) * (means[c] - 0.5 * drawn[c]);
    return sum;
  }

  // Categorical visibles. A group of categories may begin in one panel and end in the next.
  double one_of_many(const RbmDirection& d, const Patch& p, int64_t r, const float* logits, const uint32_t* words,
                     float beta) {
    const int64_t ways = m.a.categories, count = least(units, d.out - p.first);
    alignas(64) float scores[units];
    for (int64_t c = 0; c < units; ++c) scores[c] = logits[c] * beta + math::gumbel(words[c]);
    uint8_t* states = s.visible + (p.local + r) * d.out_padded;
    double sum = 0.0;
    const variate_tensor& clamp = m.a.clamp;
    for (int64_t c = 0; c < count;) {
      const int64_t unit = p.first + c, group = unit / ways, way = unit % ways;
      const int64_t end = least(count, c + ways - way);
      float best = way > 0 ? s.best[p.local + r] : -__builtin_inff();
      float field = way > 0 ? s.field[p.local + r] : 0.0f;
      int64_t winner = way > 0 ? s.winner[p.local + r] : 0;
      for (; c < end; ++c) {
        if (scores[c] > best) {
          best = scores[c];
          field = logits[c];
          winner = p.first + c - group * ways;
        }
      }
      if (p.first + c < (group + 1) * ways) {
        s.best[p.local + r] = best;
        s.field[p.local + r] = field;
        s.winner[p.local + r] = static_cast<int32_t>(winner);
        break;
      }
      const bool keep = clamp.data && static_cast<const uint8_t*>(
                                          clamp.data)[(p.row + r) * clamp.row_stride + group * clamp.col_stride];
      if (keep) continue;
      std::memset(states + group * ways, 0, ways);
      states[group * ways + winner] = 1;
      sum += finite_or_zero(field);
    }
    return sum;
  }

  void softmax(float* logits, float beta) const {
    const int64_t ways = m.a.categories;
    for (int64_t g = 0; g < m.plan.to_hidden.in / ways; ++g) {
      float* __restrict x = logits + g * ways;
      float highest = -__builtin_inff();
      for (int64_t k = 0; k < ways; ++k) highest = x[k] * beta > highest ? x[k] * beta : highest;
      float sum = 0.0f;
      for (int64_t k = 0; k < ways; ++k) sum += x[k] = x[k] * beta == highest ? 1.0f : math::exp(x[k] * beta - highest);
      for (int64_t k = 0; k < ways; ++k) x[k] /= sum;
    }
  }

  const Machine& m;
  const RbmScratch s;
  const int64_t row_, rows_, padded_;
};

}  // namespace

}  // namespace variate::cpu::VARIATE_ISA
