#include <variate/denoise.h>

#include "run.h"

using namespace variate;

namespace {

using Args = variate_denoise_step_args;

bool no_elements(const Args& a) { return a.rows == 0 || a.cols == 0; }

// A CPU's tables can be read before anything is written.
void check_rows(Checks& checks, const Args& a) {
  const int64_t samples = a.table_rows.data ? a.rows : 1, parts = a.table_rows.data ? a.table_row_tokens : 1;
  for (int64_t r = 0; r < samples && !checks.failed(); ++r) {
    for (int64_t p = 0; p < parts; ++p) {
      const auto* rows = static_cast<const int64_t*>(a.table_rows.data);
      const int64_t row = rows ? rows[r * a.table_rows.row_stride + p * a.table_rows.col_stride] : a.row;
      checks.require(row >= 0 && row < a.table_size, "row must lie in [0, %lld), got %lld",
                     static_cast<long long>(a.table_size), static_cast<long long>(row));
      if (checks.failed()) return;
      const double* c = a.coefficients + row * VARIATE_DENOISE_COLUMNS;
      const auto has = [&](const variate_tensor& tensor, int column, const char* name) {
        checks.require(tensor.data || c[column] == 0.0, "%s is missing, and row %lld of the table reads it", name,
                       static_cast<long long>(row));
      };
      checks.require(
          a.drawn.data || a.noise.key || (c[VARIATE_DENOISE_X0_NOISE] == 0.0 && c[VARIATE_DENOISE_PREV_NOISE] == 0.0),
          "noise.key is missing, and row %lld of the table has noise", static_cast<long long>(row));
      has(a.state, VARIATE_DENOISE_PREV_STATE, "state");
      for (int i = 0; i < VARIATE_DENOISE_HISTORY; ++i)
        has(a.history[i], VARIATE_DENOISE_PREV_HISTORY_0 + i, "history");
      if (!a.state_out.data) continue;
      has(a.state, VARIATE_DENOISE_STATE_STATE, "state");
      for (int i = 0; i < VARIATE_DENOISE_HISTORY; ++i) {
        has(a.history[i], VARIATE_DENOISE_STATE_HISTORY_0 + i, "history");
      }
    }
  }
}

void check_numbers(Checks& checks, const Args& a) {
  checks.require(a.rescale >= 0.0 && a.rescale <= 1.0, "rescale must lie in [0, 1], got %g", a.rescale);
  checks.require(a.quantile >= 0.0 && a.quantile <= 1.0, "quantile must lie in [0, 1], got %g", a.quantile);
  checks.require(a.clip >= 0.0, "clip must be at least 0, got %g", a.clip);
  checks.size(a.step, "step");
  checks.require(a.counter_stride == 0 || a.counter_stride == 2, "counter_stride must be 0 or 2, got %lld",
                 static_cast<long long>(a.counter_stride));
  checks.require(!a.table_rows.data || (a.table_row_tokens >= 1 && a.cols % a.table_row_tokens == 0),
                 "table_row_tokens must divide cols, %lld, got %lld", static_cast<long long>(a.cols),
                 static_cast<long long>(a.table_row_tokens));
  checks.require(a.variance_kind >= VARIATE_VARIANCE_FIXED && a.variance_kind <= VARIATE_VARIANCE_RANGE,
                 "variance_kind must lie in [VARIATE_VARIANCE_FIXED, VARIATE_VARIANCE_RANGE], got %d",
                 static_cast<int>(a.variance_kind));
  checks.require(!a.next.data || a.copies == 1 || a.copies == 2, "copies must be 1 or 2, got %d",
                 static_cast<int>(a.copies));
}

void check_tensors(Checks& checks, const Args& a) {
  checks.tensor(a.sample, "sample", is_floating);
  checks.tensor(a.output, "output", is_floating);
  checks.optional_tensor(a.unconditional, "unconditional", is_floating);
  checks.optional_tensor(a.guidance, "guidance", is_float_or_double);
  checks.optional_tensor(a.table_rows, "table_rows", is_int64);
  checks.optional_tensor(a.drawn, "drawn", is_floating);
  checks.optional_tensor(a.state, "state", is_floating);
  for (const variate_tensor& past : a.history) checks.optional_tensor(past, "history", is_floating);
  if (a.variance_kind != VARIATE_VARIANCE_FIXED) checks.tensor(a.variance, "variance", is_floating);
  checks.tensor(a.prev, "prev", is_floating);
  checks.optional_tensor(a.denoised, "denoised", is_floating);
  checks.optional_tensor(a.saved, "saved", is_floating);
  checks.optional_tensor(a.state_out, "state_out", is_floating);
  checks.optional_tensor(a.next, "next", is_floating);
}

}  // namespace

extern "C" {

VARIATE_API uint64_t variate_denoise_step_workspace(const Args* args) {
  if (!args) return 0;
#if defined(VARIATE_WITH_CUDA)
  if (args->execution.device == VARIATE_CUDA) return cuda::denoise_step_workspace(*args);
#endif
  return cpu::denoise_workspace(*args);
}

VARIATE_API variate_status variate_denoise_step(const Args* args) {
  const auto check = [](Checks& checks, const Args& a) {
    checks.size(a.rows, "rows");
    checks.size(a.cols, "cols");
    if (a.noise.key) checks.noise(a.noise, a.rows);
    check_numbers(checks, a);
    if (checks.failed()) return;
    checks.execution(a.execution, variate_denoise_step_workspace(&a));
    checks.require(a.coefficients != nullptr, "coefficients is missing");
    checks.require(a.table_rows.data || (a.row >= 0 && a.row < a.table_size), "row must lie in [0, %lld), got %lld",
                   static_cast<long long>(a.table_size), static_cast<long long>(a.row));
    if (no_elements(a)) return;
    check_tensors(checks, a);
    if (a.execution.device == VARIATE_CPU && !checks.failed()) check_rows(checks, a);
  };
  return run(__func__, args, check, no_elements, &cpu::Kernels::denoise_step, VARIATE_CUDA_KERNEL(denoise_step));
}
}
