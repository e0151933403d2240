#include <variate/rbm.h>

#include "../cpu/rbm.h"
#include "run.h"

using namespace variate;

namespace {

bool is_uint8(variate_dtype dtype) { return dtype == VARIATE_UINT8; }
bool is_float32(variate_dtype dtype) { return dtype == VARIATE_FLOAT32; }

bool categorical(const variate_rbm_gibbs_args& a) { return a.visible_kind == VARIATE_VISIBLE_CATEGORICAL; }

bool has_sizes(const variate_rbm_gibbs_args& a) { return a.rows > 0 && a.visible_units >= 0 && a.hidden_units >= 0; }

void check_dense(Checks& checks, const variate_tensor& tensor, const char* name, int64_t cols,
                 bool (*dtype)(variate_dtype)) {
  if (cols == 0) return;
  checks.tensor(tensor, name, dtype);
  checks.require(tensor.col_stride == 1 || cols == 1, "%s must have dense rows", name);
}

// Whether 0 <= first <= first + count and (first + count) times <= 2^32.
bool below_2_32(int64_t first, int64_t count, int64_t times) {
  const int64_t most = int64_t{1} << 32;
  return first >= 0 && count >= 0 && times >= 1 && first <= most && count <= most - first &&
         times <= most / (first + count > 0 ? first + count : 1);
}

// What every call has. `workspace` gives its bytes once the sizes are right.
template <class Workspace>
void check_rows(Checks& checks, const variate_rbm_gibbs_args& a, bool with_hidden, Workspace workspace) {
  checks.size(a.rows, "rows");
  checks.size(a.visible_units, "visible_units");
  checks.size(a.hidden_units, "hidden_units");
  const int64_t most = int64_t{1} << 28;
  checks.require(a.visible_units <= most && a.hidden_units <= most, "a layer may have 2^28 units, got %lld and %lld",
                 static_cast<long long>(a.visible_units), static_cast<long long>(a.hidden_units));
  checks.require(a.visible_kind >= VARIATE_VISIBLE_BERNOULLI && a.visible_kind <= VARIATE_VISIBLE_CATEGORICAL,
                 "visible_kind must be one of variate_visible_kind, got %d", static_cast<int>(a.visible_kind));
  const bool divides =
      a.categories >= 1 && a.categories <= 256 && a.visible_units >= 0 && a.visible_units % a.categories == 0;
  checks.require(!categorical(a) || divides,
                 "categories must lie in [1, 256] and divide visible_units = %lld, got %lld",
                 static_cast<long long>(a.visible_units), static_cast<long long>(a.categories));
  checks.require(a.packed == 0 || (a.packed == 1 && a.visible_kind == VARIATE_VISIBLE_BERNOULLI),
                 "packed must be 0, or 1 with Bernoulli visibles, got %d", static_cast<int>(a.packed));
  checks.size(a.steps, "steps");
  checks.require(a.first_step >= 0 && a.steps < (int64_t{1} << 32) &&
                     a.first_step <= (int64_t{1} << 32) - (a.steps > 0 ? a.steps : 1),
                 "first_step must be at least 0, and first_step + steps at most 2^32, got %lld",
                 static_cast<long long>(a.first_step));
  if (checks.failed()) return;
  checks.noise(a.noise, a.rows);
  if (checks.failed()) return;
  checks.execution(a.execution, workspace());
  if (a.rows == 0) return;
  const auto stored = [&](int64_t units) { return a.packed ? (units + 7) / 8 : units; };
  const int64_t columns = categorical(a) ? a.visible_units / a.categories : stored(a.visible_units);
  check_dense(checks, a.visible, "visible", columns,
              a.visible_kind == VARIATE_VISIBLE_GAUSSIAN ? is_float32 : is_uint8);
  if (with_hidden) check_dense(checks, a.hidden, "hidden", stored(a.hidden_units), is_uint8);
  if (a.visible_units > 0 && a.hidden_units > 0) checks.tensor(a.weight, "weight", is_float32);
  if (a.visible_units > 0) checks.tensor(a.visible_bias, "visible_bias", is_float32);
  if (a.hidden_units > 0) checks.tensor(a.hidden_bias, "hidden_bias", is_float32);
  checks.tensor(a.beta, "beta", is_float32);
  checks.optional_tensor(a.clamp, "clamp", is_uint8);
}

void check(Checks& checks, const variate_rbm_gibbs_args& a) {
  check_rows(checks, a, true, [&] { return variate_rbm_gibbs_workspace(&a); });
  if (checks.failed() || a.rows == 0) return;
  if (a.visible_probs.data) {
    check_dense(checks, a.visible_probs, "visible_probs", a.visible_units, is_float32);
    checks.require(a.steps > 0, "visible_probs takes at least one step");
  }
  if (a.hidden_probs.data) check_dense(checks, a.hidden_probs, "hidden_probs", a.hidden_units, is_float32);
}

void check(Checks& checks, const variate_rbm_anneal_args& a) {
  check_rows(checks, cpu::rows_of(a), false, [&] { return variate_rbm_anneal_workspace(&a); });
  if (checks.failed() || a.rows == 0) return;
  if (a.visible_units > 0 && a.visible_kind != VARIATE_VISIBLE_GAUSSIAN) {
    checks.tensor(a.base_bias, "base_bias", is_float32);
  }
  checks.require(a.betas != nullptr, "betas is missing");
  checks.require(a.log_weights != nullptr, "log_weights is missing");
}

void check(Checks& checks, const variate_rbm_temper_args& a) {
  checks.require(a.temperatures >= 1, "temperatures must be at least 1, got %lld",
                 static_cast<long long>(a.temperatures));
  checks.size(a.chains, "chains");
  checks.size(a.rounds, "rounds");
  checks.require(a.steps >= 1, "steps must be at least 1, got %lld", static_cast<long long>(a.steps));
  checks.require(below_2_32(a.first_round, a.rounds, a.steps),
                 "first_round must be at least 0, and (first_round + rounds) steps at most 2^32, got %lld",
                 static_cast<long long>(a.first_round));
  checks.require(
      below_2_32(a.noise.first_sample, a.chains, a.temperatures),
      "noise.first_sample must be at least 0, and (first_sample + chains) temperatures at most 2^32, got %lld",
      static_cast<long long>(a.noise.first_sample));
  checks.require(a.noise.key_stride == 0, "noise.key_stride must be 0, got %lld",
                 static_cast<long long>(a.noise.key_stride));
  if (checks.failed()) return;
  check_rows(checks, cpu::rows_of(a), true, [&] { return variate_rbm_temper_workspace(&a); });
  if (checks.failed() || a.chains == 0) return;
  checks.require(a.betas != nullptr, "betas is missing");
  checks.require(a.accepted != nullptr || a.temperatures == 1, "accepted is missing");
}

}  // namespace

extern "C" {

VARIATE_API uint64_t variate_rbm_gibbs_workspace(const variate_rbm_gibbs_args* args) {
  return args && has_sizes(*args) ? cpu::rbm_workspace(*args) : 0;
}

VARIATE_API variate_status variate_rbm_gibbs(const variate_rbm_gibbs_args* args) {
  const auto empty = [](const variate_rbm_gibbs_args& a) {
    return a.rows == 0 || (a.visible_units == 0 && a.hidden_units == 0);
  };
  return run(__func__, args, check, empty, &cpu::Kernels::rbm_gibbs, nullptr);
}

VARIATE_API uint64_t variate_rbm_anneal_workspace(const variate_rbm_anneal_args* args) {
  return args && has_sizes(cpu::rows_of(*args)) ? cpu::rbm_workspace(*args) : 0;
}

VARIATE_API variate_status variate_rbm_anneal(const variate_rbm_anneal_args* args) {
  const auto empty = [](const variate_rbm_anneal_args& a) { return a.rows == 0; };
  return run(__func__, args, check, empty, &cpu::Kernels::rbm_anneal, nullptr);
}

VARIATE_API uint64_t variate_rbm_temper_workspace(const variate_rbm_temper_args* args) {
  const bool sizes = args && below_2_32(args->noise.first_sample, args->chains, args->temperatures) &&
                     below_2_32(args->first_round, args->rounds, args->steps);
  return sizes && has_sizes(cpu::rows_of(*args)) ? cpu::rbm_workspace(*args) : 0;
}

VARIATE_API variate_status variate_rbm_temper(const variate_rbm_temper_args* args) {
  const auto empty = [](const variate_rbm_temper_args& a) { return a.chains == 0 || a.rounds == 0; };
  return run(__func__, args, check, empty, &cpu::Kernels::rbm_temper, nullptr);
}
}
