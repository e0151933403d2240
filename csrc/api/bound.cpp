#include <variate/bound.h>

#include "run.h"

using namespace variate;

extern "C" {

VARIATE_API variate_status variate_importance_weighted_bound(const variate_importance_weighted_bound_args* args) {
  using Args = variate_importance_weighted_bound_args;
  const auto empty = [](const Args& a) { return a.cols == 0; };
  const auto check = [](Checks& checks, const Args& a) {
    const bool signal = a.learning_signal.data != nullptr;
    checks.require(a.rows >= 1, "rows must be at least 1, got %lld", static_cast<long long>(a.rows));
    checks.require(a.rows >= 2 || !signal, "rows must be at least 2 for learning_signal, got %lld",
                   static_cast<long long>(a.rows));
    checks.size(a.cols, "cols");
    checks.execution(a.execution, 0);
    if (a.cols == 0) return;
    checks.tensor(a.log_weight, "log_weight", is_floating);
    checks.tensor(a.bound, "bound", is_float_or_double);
    checks.tensor(a.weight, "weight", is_float_or_double);
    checks.tensor(a.effective_sample_size, "effective_sample_size", is_float_or_double);
    checks.optional_tensor(a.learning_signal, "learning_signal", is_float_or_double);
  };
  return run(__func__, args, check, empty, &cpu::Kernels::importance_weighted_bound, nullptr);
}
}
