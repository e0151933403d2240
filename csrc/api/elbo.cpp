#include <variate/elbo.h>

#include "run.h"

using namespace variate;

namespace {

template <class Args>
bool no_elements(const Args& a) {
  return a.rows == 0 || a.cols == 0;
}

// Rows without columns still have a sum: 0.
template <class Args>
bool no_results(const Args& a) {
  return a.rows == 0 || (a.cols == 0 && a.elementwise);
}

template <class Args>
uint64_t sums_workspace(const Args* args) {
  return !args || args->elementwise ? 0 : cpu::row_sum_workspace(args->rows, args->cols);
}

template <class Args>
void check_sizes(Checks& checks, const Args& a) {
  checks.size(a.rows, "rows");
  checks.size(a.cols, "cols");
  if constexpr (requires { a.parametrization; }) checks.parametrization(a.parametrization);
}

// The checks of a call that sums terms: `result` is what it writes, `inputs` checks what it reads.
template <class Args>
void check_terms(Checks& checks, const Args& a, uint64_t (*workspace)(const Args*), const variate_tensor& result,
                 const char* name, void (*inputs)(Checks&, const Args&)) {
  check_sizes(checks, a);
  if (checks.failed()) return;
  checks.execution(a.execution, workspace(&a));
  if (no_results(a)) return;
  checks.tensor(result, name, a.elementwise ? is_floating : is_float_or_double);
  if (a.cols > 0) inputs(checks, a);
}

// The checks of a backward call: `tensors` checks what it reads and writes.
template <class Args>
void check_gradients(Checks& checks, const Args& a, void (*tensors)(Checks&, const Args&)) {
  check_sizes(checks, a);
  checks.execution(a.execution, 0);
  if (!no_elements(a)) tensors(checks, a);
}

template <class Args>
void check_normals(Checks& checks, const Args& a) {
  checks.tensor(a.mean, "mean", is_floating);
  checks.tensor(a.spread, "spread", is_floating);
  checks.optional_tensor(a.prior_mean, "prior_mean", is_floating);
  checks.optional_tensor(a.prior_spread, "prior_spread", is_floating);
  checks.optional_tensor(a.free_bits, "free_bits", is_float_or_double);
}

template <class Args>
void check_normal_target(Checks& checks, const Args& a) {
  checks.tensor(a.mean, "mean", is_floating);
  checks.tensor(a.spread, "spread", is_floating);
  checks.tensor(a.target, "target", is_floating);
}

template <class Args>
void check_logits(Checks& checks, const Args& a) {
  checks.tensor(a.logits, "logits", is_floating);
  checks.tensor(a.prior_logits, "prior_logits", is_floating);
}

template <class Args>
void check_bernoulli_target(Checks& checks, const Args& a) {
  checks.tensor(a.logits, "logits", is_floating);
  checks.tensor(a.target, "target", is_floating_or_uint8);
}

template <class Args>
void check_group_sizes(Checks& checks, const Args& a) {
  checks.size(a.rows, "rows");
  checks.size(a.groups, "groups");
  checks.require(a.categories >= 1, "categories must be at least 1, got %lld", static_cast<long long>(a.categories));
}

template <class Args>
bool no_groups(const Args& a) {
  return a.rows == 0 || a.groups == 0;
}

bool is_uint8_or_int64(variate_dtype dtype) { return dtype == VARIATE_UINT8 || dtype == VARIATE_INT64; }

template <class Args>
void check_categories(Checks& checks, const Args& a) {
  checks.tensor(a.logits, "logits", is_floating);
  checks.tensor(a.target, "target", is_uint8_or_int64);
}

}  // namespace

extern "C" {

VARIATE_API variate_status variate_satisfies(const variate_satisfies_args* args) {
  using Args = variate_satisfies_args;
  const auto never = [](const Args&) { return false; };  // nothing satisfies everything, and that is a result
  const auto check = [](Checks& checks, const Args& a) {
    check_sizes(checks, a);
    checks.execution(a.execution, 0);
    checks.require(a.constraint >= VARIATE_REAL && a.constraint <= VARIATE_BOOLEAN,
                   "constraint must lie in [VARIATE_REAL, VARIATE_BOOLEAN], got %d", static_cast<int>(a.constraint));
    checks.require(a.satisfied != nullptr, "satisfied is missing");
    if (!no_elements(a)) checks.tensor(a.value, "value", is_floating);
  };
  return run(__func__, args, check, never, &cpu::Kernels::satisfies, nullptr);
}

VARIATE_API uint64_t variate_normal_kl_workspace(const variate_normal_kl_args* args) {
#if defined(VARIATE_WITH_CUDA)
  if (args && args->execution.device == VARIATE_CUDA) return cuda::normal_kl_workspace(*args);
#endif
  return sums_workspace(args);
}

VARIATE_API variate_status variate_normal_kl(const variate_normal_kl_args* args) {
  const auto check = [](Checks& checks, const variate_normal_kl_args& a) {
    check_terms(checks, a, variate_normal_kl_workspace, a.kl, "kl", check_normals);
  };
  return run(__func__, args, check, no_results, &cpu::Kernels::normal_kl, VARIATE_CUDA_KERNEL(normal_kl));
}

VARIATE_API variate_status variate_normal_kl_backward(const variate_normal_kl_backward_args* args) {
  static constexpr auto tensors = [](Checks& checks, const variate_normal_kl_backward_args& a) {
    checks.tensor(a.grad_kl, "grad_kl", is_floating);
    check_normals(checks, a);
    checks.optional_tensor(a.grad_mean, "grad_mean", is_floating);
    checks.optional_tensor(a.grad_spread, "grad_spread", is_floating);
    checks.optional_tensor(a.grad_prior_mean, "grad_prior_mean", is_floating);
    checks.optional_tensor(a.grad_prior_spread, "grad_prior_spread", is_floating);
    checks.require((!a.grad_prior_mean.data && !a.grad_prior_spread.data) || a.prior_mean.data || a.prior_spread.data,
                   "grad_prior_mean and grad_prior_spread need a prior");
  };
  const auto check = [](Checks& checks, const variate_normal_kl_backward_args& a) {
    check_gradients<variate_normal_kl_backward_args>(checks, a, tensors);
  };
  return run(__func__, args, check, no_elements, &cpu::Kernels::normal_kl_backward,
             VARIATE_CUDA_KERNEL(normal_kl_backward));
}

VARIATE_API uint64_t variate_bernoulli_kl_workspace(const variate_bernoulli_kl_args* args) {
  return sums_workspace(args);
}

VARIATE_API variate_status variate_bernoulli_kl(const variate_bernoulli_kl_args* args) {
  const auto check = [](Checks& checks, const variate_bernoulli_kl_args& a) {
    check_terms(checks, a, variate_bernoulli_kl_workspace, a.kl, "kl", check_logits);
  };
  return run(__func__, args, check, no_results, &cpu::Kernels::bernoulli_kl, nullptr);
}

VARIATE_API variate_status variate_bernoulli_kl_backward(const variate_bernoulli_kl_backward_args* args) {
  static constexpr auto tensors = [](Checks& checks, const variate_bernoulli_kl_backward_args& a) {
    checks.tensor(a.grad_kl, "grad_kl", is_floating);
    check_logits(checks, a);
    checks.optional_tensor(a.grad_logits, "grad_logits", is_floating);
    checks.optional_tensor(a.grad_prior_logits, "grad_prior_logits", is_floating);
  };
  const auto check = [](Checks& checks, const variate_bernoulli_kl_backward_args& a) {
    check_gradients<variate_bernoulli_kl_backward_args>(checks, a, tensors);
  };
  return run(__func__, args, check, no_elements, &cpu::Kernels::bernoulli_kl_backward, nullptr);
}

VARIATE_API uint64_t variate_normal_nll_workspace(const variate_normal_nll_args* args) { return sums_workspace(args); }

VARIATE_API variate_status variate_normal_nll(const variate_normal_nll_args* args) {
  const auto check = [](Checks& checks, const variate_normal_nll_args& a) {
    check_terms(checks, a, variate_normal_nll_workspace, a.nll, "nll", check_normal_target);
  };
  return run(__func__, args, check, no_results, &cpu::Kernels::normal_nll, nullptr);
}

VARIATE_API variate_status variate_normal_nll_backward(const variate_normal_nll_backward_args* args) {
  static constexpr auto tensors = [](Checks& checks, const variate_normal_nll_backward_args& a) {
    checks.tensor(a.grad_nll, "grad_nll", is_floating);
    check_normal_target(checks, a);
    checks.optional_tensor(a.grad_mean, "grad_mean", is_floating);
    checks.optional_tensor(a.grad_spread, "grad_spread", is_floating);
    checks.optional_tensor(a.grad_target, "grad_target", is_floating);
  };
  const auto check = [](Checks& checks, const variate_normal_nll_backward_args& a) {
    check_gradients<variate_normal_nll_backward_args>(checks, a, tensors);
  };
  return run(__func__, args, check, no_elements, &cpu::Kernels::normal_nll_backward, nullptr);
}

VARIATE_API uint64_t variate_bernoulli_nll_workspace(const variate_bernoulli_nll_args* args) {
#if defined(VARIATE_WITH_CUDA)
  if (args && args->execution.device == VARIATE_CUDA) return cuda::bernoulli_nll_workspace(*args);
#endif
  return sums_workspace(args);
}

VARIATE_API variate_status variate_bernoulli_nll(const variate_bernoulli_nll_args* args) {
  const auto check = [](Checks& checks, const variate_bernoulli_nll_args& a) {
    check_terms(checks, a, variate_bernoulli_nll_workspace, a.nll, "nll", check_bernoulli_target);
  };
  return run(__func__, args, check, no_results, &cpu::Kernels::bernoulli_nll, VARIATE_CUDA_KERNEL(bernoulli_nll));
}

VARIATE_API variate_status variate_bernoulli_nll_backward(const variate_bernoulli_nll_backward_args* args) {
  static constexpr auto tensors = [](Checks& checks, const variate_bernoulli_nll_backward_args& a) {
    checks.tensor(a.grad_nll, "grad_nll", is_floating);
    check_bernoulli_target(checks, a);
    checks.optional_tensor(a.grad_logits, "grad_logits", is_floating);
    checks.optional_tensor(a.grad_target, "grad_target", is_floating);
  };
  const auto check = [](Checks& checks, const variate_bernoulli_nll_backward_args& a) {
    check_gradients<variate_bernoulli_nll_backward_args>(checks, a, tensors);
  };
  return run(__func__, args, check, no_elements, &cpu::Kernels::bernoulli_nll_backward,
             VARIATE_CUDA_KERNEL(bernoulli_nll_backward));
}

VARIATE_API uint64_t variate_categorical_nll_workspace(const variate_categorical_nll_args* args) {
  return args ? cpu::row_sum_workspace(args->rows, args->groups) : 0;
}

VARIATE_API variate_status variate_categorical_nll(const variate_categorical_nll_args* args) {
  const auto check = [](Checks& checks, const variate_categorical_nll_args& a) {
    check_group_sizes(checks, a);
    if (checks.failed()) return;
    checks.execution(a.execution, variate_categorical_nll_workspace(&a));
    if (a.rows == 0) return;
    checks.tensor(a.nll, "nll", is_float_or_double);
    checks.optional_tensor(a.log_sum_exp, "log_sum_exp", is_floating);
    if (a.groups > 0) check_categories(checks, a);
  };
  const auto empty = [](const variate_categorical_nll_args& a) { return a.rows == 0; };
  return run(__func__, args, check, empty, &cpu::Kernels::categorical_nll, nullptr);
}

VARIATE_API variate_status variate_categorical_nll_backward(const variate_categorical_nll_backward_args* args) {
  const auto check = [](Checks& checks, const variate_categorical_nll_backward_args& a) {
    check_group_sizes(checks, a);
    checks.execution(a.execution, 0);
    if (no_groups(a)) return;
    checks.tensor(a.grad_nll, "grad_nll", is_floating);
    check_categories(checks, a);
    checks.tensor(a.log_sum_exp, "log_sum_exp", is_floating);
    checks.tensor(a.grad_logits, "grad_logits", is_floating);
  };
  return run(__func__, args, check, no_groups, &cpu::Kernels::categorical_nll_backward, nullptr);
}

VARIATE_API uint64_t variate_categorical_kl_workspace(const variate_categorical_kl_args* args) {
  return args ? cpu::row_sum_workspace(args->rows, args->groups) : 0;
}

VARIATE_API variate_status variate_categorical_kl(const variate_categorical_kl_args* args) {
  const auto check = [](Checks& checks, const variate_categorical_kl_args& a) {
    check_group_sizes(checks, a);
    if (checks.failed()) return;
    checks.execution(a.execution, variate_categorical_kl_workspace(&a));
    if (a.rows == 0) return;
    checks.tensor(a.kl, "kl", is_float_or_double);
    if (a.groups > 0) check_logits(checks, a);
  };
  const auto empty = [](const variate_categorical_kl_args& a) { return a.rows == 0; };
  return run(__func__, args, check, empty, &cpu::Kernels::categorical_kl, nullptr);
}

VARIATE_API variate_status variate_categorical_kl_backward(const variate_categorical_kl_backward_args* args) {
  const auto check = [](Checks& checks, const variate_categorical_kl_backward_args& a) {
    check_group_sizes(checks, a);
    checks.execution(a.execution, 0);
    if (no_groups(a)) return;
    checks.tensor(a.grad_kl, "grad_kl", is_floating);
    check_logits(checks, a);
    checks.optional_tensor(a.grad_logits, "grad_logits", is_floating);
    checks.optional_tensor(a.grad_prior_logits, "grad_prior_logits", is_floating);
  };
  return run(__func__, args, check, no_groups, &cpu::Kernels::categorical_kl_backward, nullptr);
}
}
