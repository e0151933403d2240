#include <variate/linear.h>

#include "run.h"

using namespace variate;

namespace {

// Rows without columns still have a likelihood: 0 nats.
bool no_rows(const variate_linear_nll_args& a) { return a.rows == 0; }

void check_shape(Checks& checks, const variate_linear_nll_args& a) {
  checks.size(a.rows, "rows");
  checks.size(a.cols, "cols");
  checks.require(a.ways >= 1 && (checks.failed() || a.cols % a.ways == 0),
                 "ways must be at least 1 and divide cols, got %lld", static_cast<long long>(a.ways));
  checks.require(a.first_row >= 0, "first_row must be at least 0, got %lld", static_cast<long long>(a.first_row));
  checks.require(a.rows == 0 || a.target_rows >= 1, "target_rows must be at least 1, got %lld",
                 static_cast<long long>(a.target_rows));
  if (!checks.failed()) checks.execution(a.execution, variate_linear_nll_workspace(&a));
}

template <bool (*is_target)(variate_dtype)>
void check_call(Checks& checks, const variate_linear_nll_args& a) {
  check_shape(checks, a);
  if (a.rows == 0) return;
  checks.optional_tensor(a.nll, "nll", is_float_or_double);
  if (a.cols == 0) return;
  checks.tensor(a.products, "products", is_floating);
  checks.optional_tensor(a.bias, "bias", is_floating);
  checks.tensor(a.target, "target", is_target);
  checks.optional_tensor(a.grad_nll, "grad_nll", is_floating);
  checks.optional_tensor(a.residual, "residual", is_floating);
  checks.optional_tensor(a.grad_bias, "grad_bias", is_float_or_double);
}

void check_bernoulli(Checks& checks, const variate_linear_nll_args& a) {
  checks.require(a.ways == 1, "ways must be 1, got %lld", static_cast<long long>(a.ways));
  check_call<is_floating_or_uint8>(checks, a);
}

bool is_category(variate_dtype dtype) { return dtype == VARIATE_UINT8 || dtype == VARIATE_INT64; }

}  // namespace

extern "C" {

VARIATE_API uint64_t variate_linear_nll_workspace(const variate_linear_nll_args* args) {
  return args && args->grad_bias.data ? cpu::column_sum_workspace(args->rows, args->cols) : 0;
}

VARIATE_API variate_status variate_linear_bernoulli_nll(const variate_linear_nll_args* args) {
  return run(__func__, args, check_bernoulli, no_rows, &cpu::Kernels::linear_bernoulli_nll, nullptr);
}

VARIATE_API variate_status variate_linear_categorical_nll(const variate_linear_nll_args* args) {
  return run(__func__, args, check_call<is_category>, no_rows, &cpu::Kernels::linear_categorical_nll, nullptr);
}
}
