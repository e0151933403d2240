#include <variate/elbo.h>

#include "run.h"

using namespace variate;

extern "C" {

VARIATE_API uint64_t variate_bernoulli_nll_workspace(const variate_bernoulli_nll_args* args) {
  if (!args) return 0;
#if defined(VARIATE_WITH_CUDA)
  if (args->execution.device == VARIATE_CUDA) return cuda::bernoulli_nll_workspace(*args);
#endif
  return cpu::row_sum_workspace(args->rows, args->cols);
}

VARIATE_API variate_status variate_bernoulli_nll(const variate_bernoulli_nll_args* args) {
  // Rows without columns still have a likelihood: 0 nats.
  const auto empty = [](const variate_bernoulli_nll_args& a) { return a.rows == 0; };
  const auto check = [](Checks& checks, const variate_bernoulli_nll_args& a) {
    checks.size(a.rows, "rows");
    checks.size(a.cols, "cols");
    if (checks.failed()) return;
    checks.execution(a.execution, variate_bernoulli_nll_workspace(&a));
    if (a.rows == 0) return;
    checks.tensor(a.nll, "nll", is_float_or_double);
    if (a.cols == 0) return;
    checks.tensor(a.logits, "logits", is_floating);
    checks.tensor(a.target, "target", is_floating_or_uint8);
  };
  return run(__func__, args, check, empty, &cpu::Kernels::bernoulli_nll, VARIATE_CUDA_KERNEL(bernoulli_nll));
}

VARIATE_API variate_status variate_bernoulli_nll_backward(const variate_bernoulli_nll_backward_args* args) {
  const auto empty = [](const variate_bernoulli_nll_backward_args& a) { return a.rows == 0 || a.cols == 0; };
  const auto check = [](Checks& checks, const variate_bernoulli_nll_backward_args& a) {
    checks.size(a.rows, "rows");
    checks.size(a.cols, "cols");
    checks.execution(a.execution, 0);
    if (a.rows == 0 || a.cols == 0) return;
    checks.tensor(a.grad_nll, "grad_nll", is_floating);
    checks.tensor(a.logits, "logits", is_floating);
    checks.tensor(a.target, "target", is_floating_or_uint8);
    checks.optional_tensor(a.grad_logits, "grad_logits", is_floating);
    checks.optional_tensor(a.grad_target, "grad_target", is_floating);
  };
  return run(__func__, args, check, empty, &cpu::Kernels::bernoulli_nll_backward,
             VARIATE_CUDA_KERNEL(bernoulli_nll_backward));
}
}
