// Gibbs steps of a Boltzmann machine: sums of fixed-point weights over binary inputs, exact in any order, and what
// makes states of them. A thread takes a share of the chains through all steps; nothing is shared but the prepared
// weights.
#include "rbm.h"

#include <variate/math/rbm.hpp>

#include "kernels.h"
#include "noise.h"
#include "rbm_weights.h"

#if defined(__AMX_INT8__) && defined(__AMX_TILE__)
#define VARIATE_AMX
#include "rbm_amx.h"
#endif

namespace variate::cpu::VARIATE_ISA {

namespace {

constexpr int64_t rows_at_once = tile_elements / units;  // whose words one buffer holds
constexpr int64_t half = units / 2;                      // outputs of a table
constexpr int64_t table_inputs = 4;
constexpr int64_t tables = units / table_inputs;  // of a block of inputs: 32 KiB

typedef int32_t Ints __attribute__((vector_size(64)));

struct Machine {
  const variate_rbm_gibbs_args& a;
  RbmPlan plan;
  variate_noise hidden_noise, visible_noise;

  bool gaussian() const { return a.visible_kind == VARIATE_VISIBLE_GAUSSIAN; }
  bool categorical() const { return a.visible_kind == VARIATE_VISIBLE_CATEGORICAL; }

  // Whether a layer's units take more of their fields than a comparison with a word.
  bool exact(bool hidden) const {
    if (hidden) return a.hidden_probs.data;
    return a.visible_probs.data || a.visible_kind != VARIATE_VISIBLE_BERNOULLI;
  }
};

void prepare(Machine& m) {
  const variate_rbm_gibbs_args& a = m.a;
  const auto* weight = static_cast<const float*>(a.weight.data);
  const int64_t by_visible = a.weight.row_stride, by_hidden = a.weight.col_stride;
  const RbmDirection &h = m.plan.to_hidden, &v = m.plan.to_visible;
  const int64_t hidden_panels = h.out_padded / units, panels = hidden_panels + v.out_padded / units;
  const auto panel = [&](int64_t p) {
    const bool hidden = p < hidden_panels;
    const RbmDirection& d = hidden ? h : v;
    const int64_t index = hidden ? p : p - hidden_panels;
    PanelTotals totals;
    load_panel(d, index, weight, hidden ? by_visible : by_hidden, hidden ? by_hidden : by_visible, totals);
    fix(d, index, totals, hidden ? a.hidden_bias : a.visible_bias);
#if defined(VARIATE_AMX)
    if (has_limbs(d) && !(hidden && m.gaussian())) cut(d, index, m.exact(hidden));
#endif
  };
#pragma omp parallel for schedule(static) num_threads(m.plan.threads) if (m.plan.threads > 1)
  for (int64_t p = 0; p < panels; ++p) panel(p);
  m.hidden_noise = m.visible_noise = a.noise;
  const int64_t keys = a.noise.key_stride ? a.rows : 1;
  for (int64_t r = 0; r < keys; ++r) {
    const math::Key key = math::fold_in(key_of(a.noise, r), 1);
    m.plan.visible_keys[2 * r] = static_cast<int64_t>(key.seed);
    m.plan.visible_keys[2 * r + 1] = static_cast<int64_t>(key.offset);
  }
  m.visible_noise.key = m.plan.visible_keys;
}

// Sums over binary inputs.

// index[block, row, t] = 16 (x0 + 2 x1 + 4 x2 + 8 x3) of the inputs 4 t ... of a block.
void make_index(const uint8_t* __restrict states, int64_t rows, int64_t in_padded, uint8_t* __restrict index) {
  for (int64_t block = 0; block < in_padded / units; ++block) {
    for (int64_t r = 0; r < rows; ++r) {
      uint32_t four[tables];
      std::memcpy(four, states + r * in_padded + block * units, sizeof four);
      uint8_t* __restrict to = index + (block * rows + r) * tables;
      for (int64_t t = 0; t < tables; ++t) to[t] = static_cast<uint8_t>(four[t] * 0x01020408u >> 20 & 0xf0u);
    }
  }
}

// sums[half][row][32] of the 64 outputs of a panel. For each four inputs, a table of the 16 sums there can be.
void table_sums(const RbmDirection& d, int64_t panel, const uint8_t* index, int64_t rows, int32_t* sums) {
  alignas(64) int32_t table[tables * 16 * half];
  const float* w = d.panels + panel * d.in_padded * units;
  for (int64_t side = 0; side < 2; ++side) {
    const int64_t first = panel * units + side * half;
    int32_t* __restrict out = sums + side * rows * half;
    for (int64_t r = 0; r < rows; ++r) std::memcpy(out + r * half, d.fixed_bias + first, sizeof(int32_t) * half);
    for (int64_t block = 0; block < d.in_padded / units; ++block) {
      for (int64_t t = 0; t < tables; ++t) {
        int32_t* __restrict entry = table + t * 16 * half;
        for (int64_t c = 0; c < half; ++c) entry[c] = 0;
        for (int64_t i = 0; i < table_inputs; ++i) {
          const float* __restrict row = w + (block * units + t * table_inputs + i) * units + side * half;
          int32_t quantised[half];
          for (int64_t c = 0; c < half; ++c) quantised[c] = math::quantise(row[c], d.scale[first + c]);
          for (int64_t s = 0; s < 1 << i; ++s) {
            for (int64_t c = 0; c < half; ++c) entry[((1 << i) + s) * half + c] = entry[s * half + c] + quantised[c];
          }
        }
      }
      const uint8_t* __restrict at = index + block * rows * tables;
      const char* base = reinterpret_cast<const char*>(table);
      for (int64_t r = 0; r < rows; ++r) {
        Ints* to = reinterpret_cast<Ints*>(out + r * half);
        Ints low = to[0], high = to[1];
#pragma GCC unroll 16
        for (int64_t t = 0; t < tables; ++t) {
          const auto* entry = reinterpret_cast<const Ints*>(base + t * 16 * half * 4 + at[r * tables + t] * 8);
          low += entry[0];
          high += entry[1];
        }
        to[0] = low;
        to[1] = high;
      }
    }
  }
}

// States.

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

// One row of binary states from its logits.
inline void draw_row(const float* __restrict logits, const uint32_t* __restrict words, float beta,
                     uint8_t* __restrict states, float* __restrict probs) {
  for (int64_t c = 0; c < units; ++c) probs[c] = math::sigmoid(logits[c] * beta);
  uint32_t bits[units];
  for (int64_t c = 0; c < units; ++c) bits[c] = math::below(words[c], probs[c]) ? 1 : 0;
  for (int64_t c = 0; c < units; ++c) states[c] = static_cast<uint8_t>(bits[c]);
}

// A thread's part of a call.
class Walk {
 public:
  Walk(const Machine& machine, const RbmScratch& scratch, int64_t row, int64_t rows)
      : m(machine), s(scratch), row_(row), rows_(rows), padded_((rows + rbm_group - 1) / rbm_group * rbm_group) {}

  void run() {
    const variate_rbm_gibbs_args& a = m.a;
    load();
    for (int64_t k = 0; k < a.steps; ++k) {
      const bool last = k + 1 == a.steps;
      hidden(static_cast<uint32_t>(a.first_step + k), last);
      visible(static_cast<uint32_t>(a.first_step + k), last);
    }
    if (a.steps == 0) hidden(static_cast<uint32_t>(a.first_step), true);
    store();
  }

 private:
  void load() {
    const RbmDirection& d = m.plan.to_hidden;
    if (m.gaussian()) return;
    std::memset(s.visible, 0, padded_ * d.in_padded);
    for (int64_t r = 0; r < rows_; ++r) {
      const uint8_t* __restrict from = states_of(m.a.visible, r);
      uint8_t* __restrict to = s.visible + r * d.in_padded;
      if (!m.categorical()) {
        for (int64_t c = 0; c < d.in; ++c) to[c] = from[c] != 0;
        continue;
      }
      for (int64_t g = 0; g < d.in / m.a.categories; ++g) {
        if (from[g] < m.a.categories) to[g * m.a.categories + from[g]] = 1;
      }
    }
  }

  void store() {
    const RbmDirection& d = m.plan.to_visible;
    for (int64_t r = 0; r < rows_ && d.in > 0; ++r) {
      std::memcpy(states_of(m.a.hidden, r), s.hidden + r * d.in_padded, d.in);
    }
    if (m.a.visible_kind != VARIATE_VISIBLE_BERNOULLI || d.out == 0 || m.a.steps == 0) return;
    for (int64_t r = 0; r < rows_; ++r) {
      std::memcpy(states_of(m.a.visible, r), s.visible + r * d.out_padded, d.out);
    }
  }

  uint8_t* states_of(const variate_tensor& tensor, int64_t r) const {
    return static_cast<uint8_t*>(tensor.data) + (row_ + r) * tensor.row_stride;
  }
  float* floats_of(const variate_tensor& tensor, int64_t r) const {
    return static_cast<float*>(tensor.data) + (row_ + r) * tensor.row_stride;
  }

  Patch patch(int64_t local, int64_t first) const {
    return {row_ + local, local, least(rows_at_once, rows_ - local), first};
  }

  void hidden(uint32_t step, bool last) {
    const RbmDirection& d = m.plan.to_hidden;
    const variate_tensor probs = last ? m.a.hidden_probs : variate_tensor{};
    if (m.gaussian()) {
      for (int64_t first = 0; first < d.out_padded; first += units) {
        for (int64_t r = 0; r < rows_; r += rows_at_once) real_hidden(d, patch(r, first), step, probs);
      }
      return;
    }
    binary(d, m.hidden_noise, s.visible, s.hidden, step, probs, nullptr);
  }

  void visible(uint32_t step, bool last) {
    const RbmDirection& d = m.plan.to_visible;
    const variate_tensor probs = last ? m.a.visible_probs : variate_tensor{};
    if (m.a.visible_kind == VARIATE_VISIBLE_BERNOULLI) {
      return binary(d, m.visible_noise, s.hidden, s.visible, step, probs, m.a.clamp.data ? this : nullptr);
    }
    exact_sums(d, s.hidden, [&](const Patch& p, const int32_t* sums) {
      WordBuffer buffer;
      const uint32_t* words = patch_words(m.visible_noise, p, step, buffer);
      alignas(64) float logits[units];
      for (int64_t r = 0; r < p.rows; ++r) {
        logits_of(d, p.first, sums + r * units, logits);
        m.gaussian() ? real_visible(d, p, r, logits, words + r * units, probs)
                     : one_of_many(d, p, r, logits, words + r * units, probs);
      }
    });
    if (m.categorical() && probs.data) {
      for (int64_t r = 0; r < rows_; ++r) softmax(floats_of(probs, r), beta_of(m, row_ + r));
    }
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
    exact_sums(d, from, [&](const Patch& p, const int32_t* sums) {
      WordBuffer buffer;
      const uint32_t* words = patch_words(noise, p, step, buffer);
      alignas(64) float logits[units], drawn[units];
      for (int64_t r = 0; r < p.rows; ++r) {
        uint8_t* states = to + (p.local + r) * d.out_padded + p.first;
        uint8_t before[units];
        if (clamped) std::memcpy(before, states, units);
        logits_of(d, p.first, sums + r * units, logits);
        draw_row(logits, words + r * units, beta_of(m, p.row + r), states, drawn);
        finish(p, r, before);
        store_probs(probs, d, p, r, drawn);
      }
    });
  }

  // Gaussian visibles: the hidden layer's sums are float32, over the visibles in their order.
  void real_hidden(const RbmDirection& d, const Patch& p, uint32_t step, const variate_tensor& probs) {
    constexpr int64_t at_once = 4;
    WordBuffer buffer;
    const uint32_t* words = patch_words(m.hidden_noise, p, step, buffer);
    const float* __restrict w = d.panels + p.first * d.in_padded;
    for (int64_t r = 0; r < p.rows; r += at_once) {
      const int64_t count = least(at_once, p.rows - r);
      alignas(64) float logits[at_once][units], drawn[units];
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
      for (int64_t k = 0; k < count; ++k) {
        draw_row(logits[k], words + (r + k) * units, beta_of(m, p.row + r + k),
                 s.hidden + (p.local + r + k) * d.out_padded + p.first, drawn);
        store_probs(probs, d, p, r + k, drawn);
      }
    }
  }

  void real_visible(const RbmDirection& d, const Patch& p, int64_t r, const float* means, const uint32_t* words,
                    const variate_tensor& probs) {
    const int64_t count = least(units, d.out - p.first);
    alignas(64) float drawn[units];
    normals_of(words, drawn, units);
    const float spread = 1.0f / math::sqrt(beta_of(m, p.row + r));
    for (int64_t c = 0; c < units; ++c) drawn[c] = math::fma(spread, drawn[c], means[c]);
    float* to = floats_of(m.a.visible, p.local + r) + p.first;
    keep_clamped(m, p.row + r, p.first, count, to, drawn);
    std::memcpy(to, drawn, sizeof(float) * count);
    store_probs(probs, d, p, r, means);
  }

  // Categorical visibles. A group of categories may begin in one panel and end in the next.
  void one_of_many(const RbmDirection& d, const Patch& p, int64_t r, const float* logits, const uint32_t* words,
                   const variate_tensor& probs) {
    const int64_t ways = m.a.categories, count = least(units, d.out - p.first);
    alignas(64) float scores[units];
    const float beta = beta_of(m, p.row + r);
    for (int64_t c = 0; c < units; ++c) scores[c] = logits[c] * beta + math::gumbel(words[c]);
    uint8_t* states = s.visible + (p.local + r) * d.out_padded;
    uint8_t* chosen = states_of(m.a.visible, p.local + r);
    const variate_tensor& clamp = m.a.clamp;
    for (int64_t c = 0; c < count;) {
      const int64_t unit = p.first + c, group = unit / ways, way = unit % ways;
      const int64_t end = least(count, c + ways - way);
      float best = way > 0 ? s.best[p.local + r] : -__builtin_inff();
      int64_t winner = way > 0 ? s.winner[p.local + r] : 0;
      for (; c < end; ++c) {
        if (scores[c] > best) {
          best = scores[c];
          winner = p.first + c - group * ways;
        }
      }
      if (p.first + c < (group + 1) * ways) {
        s.best[p.local + r] = best;
        s.winner[p.local + r] = static_cast<int32_t>(winner);
        break;
      }
      const bool keep = clamp.data && static_cast<const uint8_t*>(
                                          clamp.data)[(p.row + r) * clamp.row_stride + group * clamp.col_stride];
      if (keep) continue;
      std::memset(states + group * ways, 0, ways);
      states[group * ways + winner] = 1;
      chosen[group] = static_cast<uint8_t>(winner);
    }
    store_probs(probs, d, p, r, logits);
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

void rbm_gibbs(const variate_rbm_gibbs_args& a) {
  Machine m{a, RbmPlan(a, reinterpret_cast<uint64_t>(a.execution.workspace)), {}, {}};
  prepare(m);
  const int64_t groups = (a.rows + rbm_group - 1) / rbm_group;
  const auto share = [&](int thread) {
    const int64_t begin = groups * thread / m.plan.threads * rbm_group;
    const int64_t end = least(a.rows, groups * (thread + 1) / m.plan.threads * rbm_group);
#if defined(VARIATE_AMX)
    const TileConfiguration tiles;
    in_memory(&tiles);
    _tile_loadconfig(&tiles);
#endif
    for (int64_t row = begin; row < end; row += m.plan.chunk) {
      Walk(m, m.plan.scratch(thread), row, least(m.plan.chunk, end - row)).run();
    }
#if defined(VARIATE_AMX)
    _tile_release();
#endif
  };
#pragma omp parallel for schedule(static, 1) num_threads(m.plan.threads) if (m.plan.threads > 1)
  for (int thread = 0; thread < m.plan.threads; ++thread) share(thread);
}

}  // namespace variate::cpu::VARIATE_ISA
