#include <variate/reparam.h>

#include "run.h"

using namespace variate;

namespace {

template <class Args>
void check_inputs(Checks& checks, const Args& a) {
  checks.tensor(a.mean, "mean", is_floating);
  checks.tensor(a.log_var, "log_var", is_floating);
  checks.optional_tensor(a.prior_mean, "prior_mean", is_floating);
  checks.optional_tensor(a.prior_log_var, "prior_log_var", is_floating);
  checks.optional_tensor(a.free_bits, "free_bits", is_float_or_double);
}

template <class Args>
bool no_elements(const Args& a) {
  return a.rows == 0 || a.cols == 0;
}

template <class Args>
void check_samples(Checks& checks, const Args& a) {
  checks.size(a.rows, "rows");
  checks.size(a.cols, "cols");
  checks.noise(a.noise, a.rows);
  checks.execution(a.execution, 0);
  checks.require(a.samples >= 1, "samples must be at least 1, got %lld", static_cast<long long>(a.samples));
  checks.require(a.antithetic == 0 || a.antithetic == 1, "antithetic must be 0 or 1, got %d",
                 static_cast<int>(a.antithetic));
  checks.require(a.base >= VARIATE_BASE_NORMAL && a.base <= VARIATE_BASE_GUMBEL,
                 "base must lie in [VARIATE_BASE_NORMAL, VARIATE_BASE_GUMBEL], got %d", static_cast<int>(a.base));
  checks.parametrization(a.parametrization);
}

}  // namespace

extern "C" {

VARIATE_API uint64_t variate_normal_rsample_kl_workspace(const variate_normal_rsample_kl_args* args) {
  if (!args || !args->kl.data) return 0;
#if defined(VARIATE_WITH_CUDA)
  if (args->execution.device == VARIATE_CUDA) return cuda::normal_rsample_kl_workspace(*args);
#endif
  return cpu::row_sum_workspace(args->rows, args->cols);
}

VARIATE_API variate_status variate_normal_rsample_kl(const variate_normal_rsample_kl_args* args) {
  // Rows without columns still have a divergence: 0.
  const auto empty = [](const variate_normal_rsample_kl_args& a) { return a.rows == 0 || (a.cols == 0 && !a.kl.data); };
  const auto check = [](Checks& checks, const variate_normal_rsample_kl_args& a) {
    checks.size(a.rows, "rows");
    checks.size(a.cols, "cols");
    checks.noise(a.noise, a.rows);
    if (checks.failed()) return;
    checks.execution(a.execution, variate_normal_rsample_kl_workspace(&a));
    checks.optional_tensor(a.kl, "kl", is_float_or_double);
    if (no_elements(a)) return;
    check_inputs(checks, a);
    checks.tensor(a.z, "z", is_floating);
  };
  return run(__func__, args, check, empty, &cpu::Kernels::normal_rsample_kl, VARIATE_CUDA_KERNEL(normal_rsample_kl));
}

VARIATE_API variate_status variate_normal_rsample_kl_backward(const variate_normal_rsample_kl_backward_args* args) {
  const auto check = [](Checks& checks, const variate_normal_rsample_kl_backward_args& a) {
    checks.size(a.rows, "rows");
    checks.size(a.cols, "cols");
    checks.noise(a.noise, a.rows);
    checks.execution(a.execution, 0);
    if (no_elements(a)) return;
    check_inputs(checks, a);
    checks.optional_tensor(a.grad_z, "grad_z", is_floating);
    checks.optional_tensor(a.grad_kl, "grad_kl", is_floating);
    checks.optional_tensor(a.grad_mean, "grad_mean", is_floating);
    checks.optional_tensor(a.grad_log_var, "grad_log_var", is_floating);
    checks.optional_tensor(a.grad_prior_mean, "grad_prior_mean", is_floating);
    checks.optional_tensor(a.grad_prior_log_var, "grad_prior_log_var", is_floating);
    checks.require((!a.grad_prior_mean.data && !a.grad_prior_log_var.data) || a.prior_mean.data || a.prior_log_var.data,
                   "grad_prior_mean and grad_prior_log_var need a prior");
  };
  return run(__func__, args, check, no_elements, &cpu::Kernels::normal_rsample_kl_backward,
             VARIATE_CUDA_KERNEL(normal_rsample_kl_backward));
}

VARIATE_API variate_status variate_location_scale_rsample(const variate_location_scale_rsample_args* args) {
  const auto check = [](Checks& checks, const variate_location_scale_rsample_args& a) {
    check_samples(checks, a);
    if (no_elements(a)) return;
    checks.tensor(a.loc, "loc", is_floating);
    checks.tensor(a.spread, "spread", is_floating);
    checks.tensor(a.z, "z", is_floating);
  };
  return run(__func__, args, check, no_elements, &cpu::Kernels::location_scale_rsample, nullptr);
}

VARIATE_API variate_status
variate_location_scale_rsample_backward(const variate_location_scale_rsample_backward_args* args) {
  const auto check = [](Checks& checks, const variate_location_scale_rsample_backward_args& a) {
    check_samples(checks, a);
    if (no_elements(a)) return;
    checks.tensor(a.grad_z, "grad_z", is_floating);
    checks.tensor(a.spread, "spread", is_floating);
    checks.optional_tensor(a.grad_loc, "grad_loc", is_floating);
    checks.optional_tensor(a.grad_spread, "grad_spread", is_floating);
  };
  return run(__func__, args, check, no_elements, &cpu::Kernels::location_scale_rsample_backward, nullptr);
}
}
