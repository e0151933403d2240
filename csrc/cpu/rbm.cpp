// Boltzmann machines: Gibbs steps, annealing and tempering. Sums of fixed-point weights over binary inputs are exact in
// any order. A thread takes a share of the chains through a whole call; nothing is shared but the prepared weights.
#include "rbm.h"

#include <variate/math/lattice.hpp>

#include "kernels.h"
#include "rbm_walk.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

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
    if (has_limbs(d) && !(hidden && m.gaussian())) cut(d, index, hidden ? m.exact_hidden : m.exact_visible);
#endif
  };
#pragma omp parallel for schedule(static) num_threads(m.plan.threads) if (m.plan.threads > 1)
  for (int64_t p = 0; p < panels; ++p) panel(p);
  const int64_t keys = a.noise.key_stride ? a.rows : 1;
  for (int64_t r = 0; r < keys; ++r) {
    const math::Key key = math::fold_in(key_of(a.noise, r), 1);
    m.plan.visible_keys[2 * r] = static_cast<int64_t>(key.seed);
    m.plan.visible_keys[2 * r + 1] = static_cast<int64_t>(key.offset);
  }
  m.visible_noise.key = m.plan.visible_keys;
}

// body(walk, first row, rows) for all rows, in the chunks of their threads.
template <class Body>
void for_walks(const Machine& m, Body body) {
  const RbmPlan& plan = m.plan;
  const auto share = [&](int thread) {
    const int64_t begin = plan.groups * thread / plan.threads * plan.group;
    const int64_t end = least(m.a.rows, plan.groups * (thread + 1) / plan.threads * plan.group);
#if defined(VARIATE_AMX)
    const TileConfiguration tiles;
    in_memory(&tiles);
    _tile_loadconfig(&tiles);
#endif
    for (int64_t row = begin; row < end; row += plan.chunk) {
      const int64_t rows = least(plan.chunk, end - row);
      Walk walk(m, plan.scratch(thread), row, rows);
      walk.load();
      body(walk, row, rows);
      walk.store();
    }
#if defined(VARIATE_AMX)
    _tile_release();
#endif
  };
#pragma omp parallel for schedule(static, 1) num_threads(plan.threads) if (plan.threads > 1)
  for (int thread = 0; thread < plan.threads; ++thread) share(thread);
}

// Sum over units of softplus(to x) - softplus(from x), from and to at least 0: softplus(b x) is b max(x, 0) plus the
// log of 1 + exp(-b |x|), of which 64 multiply without overflow.
double softplus_change(const float* logits, int64_t count, double from, double to) {
  const float low = static_cast<float>(from), high = static_cast<float>(to);
  float before[units], after[units], positive[units];
  for (int64_t c = 0; c < units; ++c) {
    const float x = math::abs(logits[c]);
    const float b = low > 0.0f ? math::exp_nonpositive(-low * x) : 1.0f;
    const float a = high > 0.0f ? math::exp_nonpositive(-high * x) : 1.0f;
    before[c] = c < count ? b : 0.0f;
    after[c] = c < count ? a : 0.0f;
    positive[c] = logits[c] > 0.0f ? logits[c] : 0.0f;
  }
  Doubles over = Doubles{} + 1.0, below = over, above = {};
  for (int64_t c = 0; c < units; c += 8) {
    over *= 1.0 + widen(after + c);
    below *= 1.0 + widen(before + c);
    above += widen(positive + c);
  }
  for (int64_t k = 1; k < 8; ++k) {
    over[0] *= over[k];
    below[0] *= below[k];
  }
  return (to - from) * sum_of(above) + math::log(over[0] / below[0]);
}

}  // namespace

void rbm_gibbs(const variate_rbm_gibbs_args& a) {
  Machine m{a, RbmPlan(a, reinterpret_cast<uint64_t>(a.execution.workspace)), a.hidden_probs.data != nullptr,
            a.visible_probs.data || a.visible_kind != VARIATE_VISIBLE_BERNOULLI};
  prepare(m);
  for_walks(m, [&](Walk& walk, int64_t, int64_t) {
    for (int64_t k = 0; k < a.steps; ++k) {
      const bool last = k + 1 == a.steps;
      walk.hidden(static_cast<uint32_t>(a.first_step + k), last);
      walk.visible(static_cast<uint32_t>(a.first_step + k), last);
    }
    if (a.steps == 0) walk.hidden(static_cast<uint32_t>(a.first_step), true);
  });
}

void rbm_anneal(const variate_rbm_anneal_args& args) {
  const variate_rbm_gibbs_args a = rows_of(args);
  Machine m{a, RbmPlan(a, reinterpret_cast<uint64_t>(a.execution.workspace)), true, true};
  prepare(m);
  const RbmDirection &h = m.plan.to_hidden, &v = m.plan.to_visible;
  for (int64_t i = 0; i < v.out_padded; ++i) {
    const float base = i < v.out ? element<float>(args.base_bias, i, 0) : 0.0f;
    v.base[i] = m.gaussian() ? v.bias[i] : base;
    v.gap[i] = v.bias[i] - v.base[i];
  }
  for_walks(m, [&](Walk& walk, int64_t row, int64_t rows) {
    double* log_weights = args.log_weights + row;
    for (int64_t r = 0; r < rows; ++r) log_weights[r] = 0.0;
    for (int64_t k = 0; k < a.steps; ++k) {
      const double from = args.betas[k], to = args.betas[k + 1];
      const float beta = static_cast<float>(to), rest = static_cast<float>(1.0 - to);
      const uint32_t step = static_cast<uint32_t>(a.first_step + k);
      for (int64_t r = 0; r < rows && !m.gaussian(); ++r) {
        log_weights[r] += (to - from) * sum_where(walk.visible_row(r), v.gap, v.out_padded / units);
      }
      alignas(64) float drawn[units];
      walk.hidden_logits(step, [&](const Patch& p, int64_t r, const float* logits, const uint32_t* words) {
        log_weights[p.local + r] += softplus_change(logits, least(units, h.out - p.first), from, to);
        draw_row(logits, words, beta, walk.hidden_at(p, r), drawn);
      });
      walk.visible_logits(step, [&](const Patch& p, int64_t r, const float* logits, const uint32_t* words) {
        const float* base = v.base + p.first;
        for (int64_t c = 0; c < units; ++c) drawn[c] = beta * logits[c] + rest * base[c];
        walk.draw_visible(p, r, drawn, words, 1.0f);
      });
    }
  });
}

void rbm_temper(const variate_rbm_temper_args& args) {
  variate_rbm_gibbs_args a = rows_of(args);
  const int64_t count = args.temperatures;
  Machine m{a, RbmPlan(a, reinterpret_cast<uint64_t>(a.execution.workspace), count), false, true};
  for (int64_t r = 0; r < a.rows; ++r) m.plan.betas[r] = static_cast<float>(args.betas[r % count]);
  a.beta = {m.plan.betas, VARIATE_FLOAT32, 1, 0};
  prepare(m);
  const RbmDirection& h = m.plan.to_hidden;
  const math::Key key = math::fold_in(key_of(a.noise, 0), math::swap_draw);
  for_walks(m, [&](Walk& walk, int64_t row, int64_t rows) {
    double* energy = walk.energy();
    for (int64_t round = args.first_round; round < args.first_round + args.rounds; ++round) {
      for (int64_t k = round * args.steps; k < (round + 1) * args.steps; ++k) {
        const uint32_t step = static_cast<uint32_t>(k);
        walk.hidden(step, false);
        if (k + 1 < (round + 1) * args.steps) {
          walk.visible(step, false);
          continue;
        }
        for (int64_t r = 0; r < rows; ++r) energy[r] = -sum_where(walk.hidden_row(r), h.bias, h.out_padded / units);
        walk.visible_logits(step, [&](const Patch& p, int64_t r, const float* logits, const uint32_t* words) {
          energy[p.local + r] -= walk.draw_visible(p, r, logits, words, beta_of(m, p.row + r));
        });
      }
      for (int64_t first = 0; first < rows; first += count) {
        const uint32_t sample = static_cast<uint32_t>(args.noise.first_sample + (row + first) / count);
        for (int64_t t = round % 2; t + 1 < count; t += 2) {
          const int64_t low = first + t, high = low + 1;
          const double ratio = (args.betas[t + 1] - args.betas[t]) * (energy[high] - energy[low]);
          if (!(ratio > -700.0)) continue;  // nor where it is no number
          const math::Words words = math::noise_words(key, t / 4, sample, static_cast<uint32_t>(round));
          const double threshold = __builtin_ceil(math::exp_exact(ratio < 0.0 ? ratio : 0.0) * 0x1p32);
          if (words.w[t % 4] >= threshold) continue;
          walk.swap_rows(low, high);
          std::swap(energy[low], energy[high]);
#pragma omp atomic
          ++args.accepted[t];
        }
      }
    }
  });
}

}  // namespace variate::cpu::VARIATE_ISA
