#include <variate/logistic.h>

#include "run.h"

using namespace variate;

namespace {

template <class Args>
bool no_elements(const Args& a) {
  return a.rows == 0 || a.cols == 0;
}

template <class Args>
bool no_pixels(const Args& a) {
  return a.batch == 0 || a.pixels == 0;
}

bool is_uint8(variate_dtype dtype) { return dtype == VARIATE_UINT8; }

void check_bits(Checks& checks, int32_t bits) {
  checks.require(bits >= 1 && bits <= 8, "bits must lie in [1, 8], got %d", static_cast<int>(bits));
}

void check_edges(Checks& checks, variate_edges edges) {
  checks.require(edges == VARIATE_EXACT_EDGES || edges == VARIATE_COMPAT_EDGES,
                 "edges must be VARIATE_EXACT_EDGES or VARIATE_COMPAT_EDGES, got %d", static_cast<int>(edges));
}

template <class Args>
void check_rows(Checks& checks, const Args& a) {
  checks.size(a.rows, "rows");
  checks.size(a.cols, "cols");
  check_bits(checks, a.bits);
  check_edges(checks, a.edges);
}

template <class Args>
void check_inputs(Checks& checks, const Args& a) {
  checks.tensor(a.mean, "mean", is_floating);
  checks.tensor(a.log_scale, "log_scale", is_floating);
  checks.tensor(a.target, "target", is_floating_or_uint8);
}

void check_image(Checks& checks, const variate_image& image, const char* name, bool (*accepts)(variate_dtype)) {
  checks.tensor({image.data, image.dtype, 0, 0}, name, accepts);
}

template <class Args>
void check_mixture(Checks& checks, const Args& a) {
  checks.size(a.batch, "batch");
  checks.size(a.pixels, "pixels");
  checks.require(a.channels == 1 || a.channels == 3, "channels must be 1 or 3, got %d", static_cast<int>(a.channels));
  checks.require(a.mixtures >= 1, "mixtures must be at least 1, got %d", static_cast<int>(a.mixtures));
  check_bits(checks, a.bits);
}

}  // namespace

extern "C" {

VARIATE_API uint64_t variate_discretized_logistic_nll_workspace(const variate_discretized_logistic_nll_args* args) {
  return args ? cpu::row_sum_workspace(args->rows, args->cols) : 0;
}

VARIATE_API variate_status variate_discretized_logistic_nll(const variate_discretized_logistic_nll_args* args) {
  // Rows without columns still have a likelihood: 0 nats.
  const auto empty = [](const variate_discretized_logistic_nll_args& a) { return a.rows == 0; };
  const auto check = [](Checks& checks, const variate_discretized_logistic_nll_args& a) {
    check_rows(checks, a);
    if (checks.failed()) return;
    checks.execution(a.execution, variate_discretized_logistic_nll_workspace(&a));
    if (a.rows == 0) return;
    checks.tensor(a.nll, "nll", is_float_or_double);
    if (a.cols > 0) check_inputs(checks, a);
  };
  return run(__func__, args, check, empty, &cpu::Kernels::discretized_logistic_nll, nullptr);
}

VARIATE_API variate_status
variate_discretized_logistic_nll_backward(const variate_discretized_logistic_nll_backward_args* args) {
  const auto check = [](Checks& checks, const variate_discretized_logistic_nll_backward_args& a) {
    check_rows(checks, a);
    checks.execution(a.execution, 0);
    if (no_elements(a)) return;
    checks.tensor(a.grad_nll, "grad_nll", is_floating);
    check_inputs(checks, a);
    checks.optional_tensor(a.grad_mean, "grad_mean", is_floating);
    checks.optional_tensor(a.grad_log_scale, "grad_log_scale", is_floating);
  };
  return run(__func__, args, check, no_elements, &cpu::Kernels::discretized_logistic_nll_backward, nullptr);
}

VARIATE_API uint64_t
variate_discretized_logistic_mixture_nll_workspace(const variate_discretized_logistic_mixture_nll_args* args) {
  if (!args) return 0;
#if defined(VARIATE_WITH_CUDA)
  if (args->execution.device == VARIATE_CUDA) return cuda::discretized_logistic_mixture_nll_workspace(*args);
#endif
  return cpu::mixture_workspace(*args);
}

VARIATE_API variate_status
variate_discretized_logistic_mixture_nll(const variate_discretized_logistic_mixture_nll_args* args) {
  const auto empty = [](const variate_discretized_logistic_mixture_nll_args& a) { return a.batch == 0; };
  const auto check = [](Checks& checks, const variate_discretized_logistic_mixture_nll_args& a) {
    check_mixture(checks, a);
    check_edges(checks, a.edges);
    if (checks.failed()) return;
    checks.execution(a.execution, variate_discretized_logistic_mixture_nll_workspace(&a));
    if (a.batch == 0) return;
    checks.tensor(a.nll, "nll", is_float_or_double);
    if (a.pixels == 0) return;
    check_image(checks, a.params, "params", is_floating);
    check_image(checks, a.target, "target", is_floating_or_uint8);
  };
  return run(__func__, args, check, empty, &cpu::Kernels::discretized_logistic_mixture_nll,
             VARIATE_CUDA_KERNEL(discretized_logistic_mixture_nll));
}

VARIATE_API uint64_t variate_discretized_logistic_mixture_nll_backward_workspace(
    const variate_discretized_logistic_mixture_nll_backward_args* args) {
  return args && args->execution.device == VARIATE_CPU ? cpu::mixture_backward_workspace(*args) : 0;
}

VARIATE_API variate_status
variate_discretized_logistic_mixture_nll_backward(const variate_discretized_logistic_mixture_nll_backward_args* args) {
  const auto check = [](Checks& checks, const variate_discretized_logistic_mixture_nll_backward_args& a) {
    check_mixture(checks, a);
    check_edges(checks, a.edges);
    if (checks.failed()) return;
    checks.execution(a.execution, variate_discretized_logistic_mixture_nll_backward_workspace(&a));
    if (no_pixels(a)) return;
    checks.tensor(a.grad_nll, "grad_nll", is_floating);
    check_image(checks, a.params, "params", is_floating);
    check_image(checks, a.target, "target", is_floating_or_uint8);
    check_image(checks, a.grad_params, "grad_params", is_floating);
  };
  return run(__func__, args, check, no_pixels, &cpu::Kernels::discretized_logistic_mixture_nll_backward,
             VARIATE_CUDA_KERNEL(discretized_logistic_mixture_nll_backward));
}

VARIATE_API variate_status
variate_discretized_logistic_mixture_sample(const variate_discretized_logistic_mixture_sample_args* args) {
  const auto check = [](Checks& checks, const variate_discretized_logistic_mixture_sample_args& a) {
    check_mixture(checks, a);
    checks.execution(a.execution, 0);
    checks.noise(a.noise, a.batch);
    if (checks.failed() || no_pixels(a)) return;
    check_image(checks, a.params, "params", is_floating);
    check_image(checks, a.sample, "sample", is_uint8);
  };
  return run(__func__, args, check, no_pixels, &cpu::Kernels::discretized_logistic_mixture_sample, nullptr);
}
}
