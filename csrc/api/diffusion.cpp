#include <variate/diffusion.h>

#include "run.h"

using namespace variate;

namespace {

template <class Args>
bool no_elements(const Args& a) {
  return a.rows == 0 || a.cols == 0;
}

bool is_uint8(variate_dtype dtype) { return dtype == VARIATE_UINT8; }

void check_parts(Checks& checks, int64_t parts, int64_t cols, const char* name) {
  checks.require(parts >= 1 && cols % parts == 0, "%s must be at least 1 and divide cols, got %lld", name,
                 static_cast<long long>(parts));
}

// On the host timesteps can be looked at; on a GPU one outside the table gives NaN.
void check_timesteps(Checks& checks, const variate_noise_and_target_args& a) {
  const auto* timesteps = static_cast<const int64_t*>(a.timestep.data);
  for (int64_t r = 0; r < a.rows && !checks.failed(); ++r) {
    for (int64_t p = 0; p < a.tokens; ++p) {
      const int64_t t = timesteps[r * a.timestep.row_stride + p * a.timestep.col_stride];
      checks.require(t >= 0 && t < a.table_size, "timestep must lie in [0, %lld), got %lld",
                     static_cast<long long>(a.table_size), static_cast<long long>(t));
    }
  }
}

template <class Args>
void check_loss(Checks& checks, const Args& a) {
  checks.require(a.penalty == VARIATE_SQUARE || a.penalty == VARIATE_HUBER,
                 "penalty must be VARIATE_SQUARE or VARIATE_HUBER, got %d", static_cast<int>(a.penalty));
  checks.require(a.penalty == VARIATE_SQUARE || a.delta > 0, "delta must be above 0, got %g", a.delta);
}

template <class Args>
void check_inputs(Checks& checks, const Args& a) {
  checks.tensor(a.prediction, "prediction", is_floating);
  checks.tensor(a.target, "target", is_floating);
  checks.optional_tensor(a.weight, "weight", is_floating);
  checks.optional_tensor(a.mask, "mask", is_uint8);
  checks.optional_tensor(a.grad_prediction, "grad_prediction", is_floating);
}

}  // namespace

extern "C" {

VARIATE_API variate_status variate_noise_and_target(const variate_noise_and_target_args* args) {
  const auto check = [](Checks& checks, const variate_noise_and_target_args& a) {
    checks.size(a.rows, "rows");
    checks.size(a.cols, "cols");
    if (!no_elements(a) && (!a.drawn.data || a.offset_noise != 0)) checks.noise(a.noise, a.rows);
    checks.execution(a.execution, 0);
    checks.require(a.prediction >= VARIATE_PREDICT_EPSILON && a.prediction <= VARIATE_PREDICT_EDM,
                   "prediction must lie in [VARIATE_PREDICT_EPSILON, VARIATE_PREDICT_EDM], got %d",
                   static_cast<int>(a.prediction));
    checks.require(a.prediction != VARIATE_PREDICT_EDM || a.sigma_data > 0, "sigma_data must be above 0, got %g",
                   a.sigma_data);
    if (no_elements(a)) return;
    check_parts(checks, a.tokens, a.cols, "tokens");
    check_parts(checks, a.channels, a.cols, "channels");
    checks.tensor(a.levels, "levels", is_float_or_double);
    checks.require(a.table_size >= 1, "table_size must be at least 1, got %lld", static_cast<long long>(a.table_size));
    checks.optional_tensor(a.timestep, "timestep", is_int64);
    checks.require(a.timestep.data || (a.table_size % a.rows == 0 && a.table_size / a.rows == a.tokens),
                   "table_size must be rows * tokens without timestep, got %lld", static_cast<long long>(a.table_size));
    checks.tensor(a.x0, "x0", is_floating);
    checks.optional_tensor(a.drawn, "drawn", is_floating);
    checks.optional_tensor(a.mask, "mask", is_uint8);
    checks.tensor(a.x_t, "x_t", is_floating);
    checks.tensor(a.target, "target", is_floating);
    if (!checks.failed() && a.timestep.data && a.execution.device == VARIATE_CPU) check_timesteps(checks, a);
  };
  return run(__func__, args, check, no_elements, &cpu::Kernels::noise_and_target, nullptr);
}

VARIATE_API uint64_t variate_denoising_loss_workspace(const variate_denoising_loss_args* args) {
  return args ? cpu::row_sum_workspace(args->rows, args->cols) : 0;
}

VARIATE_API variate_status variate_denoising_loss(const variate_denoising_loss_args* args) {
  // Rows without columns still have a loss: 0.
  const auto empty = [](const variate_denoising_loss_args& a) { return a.rows == 0; };
  const auto check = [](Checks& checks, const variate_denoising_loss_args& a) {
    checks.size(a.rows, "rows");
    checks.size(a.cols, "cols");
    check_loss(checks, a);
    if (checks.failed()) return;
    checks.execution(a.execution, variate_denoising_loss_workspace(&a));
    if (a.rows == 0) return;
    checks.tensor(a.loss, "loss", is_float_or_double);
    if (a.cols > 0) check_inputs(checks, a);
  };
  return run(__func__, args, check, empty, &cpu::Kernels::denoising_loss, nullptr);
}

VARIATE_API variate_status variate_denoising_loss_backward(const variate_denoising_loss_backward_args* args) {
  const auto check = [](Checks& checks, const variate_denoising_loss_backward_args& a) {
    checks.size(a.rows, "rows");
    checks.size(a.cols, "cols");
    check_loss(checks, a);
    checks.execution(a.execution, 0);
    checks.require(a.ready == 0 || a.ready == 1, "ready must be 0 or 1, got %d", static_cast<int>(a.ready));
    if (no_elements(a)) return;
    checks.tensor(a.grad_loss, "grad_loss", is_floating);
    check_inputs(checks, a);
    checks.optional_tensor(a.grad_target, "grad_target", is_floating);
  };
  return run(__func__, args, check, no_elements, &cpu::Kernels::denoising_loss_backward, nullptr);
}
}
