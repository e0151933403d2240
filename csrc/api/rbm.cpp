#include <variate/rbm.h>

#include "run.h"

using namespace variate;

namespace {

bool is_uint8(variate_dtype dtype) { return dtype == VARIATE_UINT8; }
bool is_float32(variate_dtype dtype) { return dtype == VARIATE_FLOAT32; }

bool categorical(const variate_rbm_gibbs_args& a) { return a.visible_kind == VARIATE_VISIBLE_CATEGORICAL; }

void check(Checks& checks, const variate_rbm_gibbs_args& a) {
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
  checks.size(a.steps, "steps");
  checks.require(a.first_step >= 0 && a.steps < (int64_t{1} << 32) &&
                     a.first_step <= (int64_t{1} << 32) - (a.steps > 0 ? a.steps : 1),
                 "first_step must be at least 0, and first_step + steps at most 2^32, got %lld",
                 static_cast<long long>(a.first_step));
  if (checks.failed()) return;
  checks.noise(a.noise, a.rows);
  if (checks.failed()) return;
  checks.execution(a.execution, variate_rbm_gibbs_workspace(&a));
  if (a.rows == 0) return;
  const auto dense = [&](const variate_tensor& tensor, const char* name, int64_t cols, bool (*dtype)(variate_dtype)) {
    if (cols == 0) return;
    checks.tensor(tensor, name, dtype);
    checks.require(tensor.col_stride == 1 || cols == 1, "%s must have dense rows", name);
  };
  const int64_t columns = categorical(a) ? a.visible_units / a.categories : a.visible_units;
  dense(a.visible, "visible", columns, a.visible_kind == VARIATE_VISIBLE_GAUSSIAN ? is_float32 : is_uint8);
  dense(a.hidden, "hidden", a.hidden_units, is_uint8);
  if (a.visible_units > 0 && a.hidden_units > 0) checks.tensor(a.weight, "weight", is_float32);
  if (a.visible_units > 0) checks.tensor(a.visible_bias, "visible_bias", is_float32);
  if (a.hidden_units > 0) checks.tensor(a.hidden_bias, "hidden_bias", is_float32);
  checks.tensor(a.beta, "beta", is_float32);
  checks.optional_tensor(a.clamp, "clamp", is_uint8);
  if (a.visible_probs.data) {
    dense(a.visible_probs, "visible_probs", a.visible_units, is_float32);
    checks.require(a.steps > 0, "visible_probs takes at least one step");
  }
  if (a.hidden_probs.data) dense(a.hidden_probs, "hidden_probs", a.hidden_units, is_float32);
}

}  // namespace

extern "C" {

VARIATE_API uint64_t variate_rbm_gibbs_workspace(const variate_rbm_gibbs_args* args) {
  const bool sizes = args && args->rows > 0 && args->visible_units >= 0 && args->hidden_units >= 0;
  return sizes ? cpu::rbm_workspace(*args) : 0;
}

VARIATE_API variate_status variate_rbm_gibbs(const variate_rbm_gibbs_args* args) {
  const auto empty = [](const variate_rbm_gibbs_args& a) {
    return a.rows == 0 || (a.visible_units == 0 && a.hidden_units == 0);
  };
  return run(__func__, args, check, empty, &cpu::Kernels::rbm_gibbs, nullptr);
}
}
