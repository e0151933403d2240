#include <variate/ema.h>

#include "run.h"

using namespace variate;

extern "C" {

VARIATE_API variate_status variate_ema_update(const variate_ema_update_args* args) {
  const auto empty = [](const variate_ema_update_args& a) { return a.tensors == 0 || a.profiles == 0; };
  const auto check = [](Checks& checks, const variate_ema_update_args& a) {
    checks.size(a.tensors, "tensors");
    checks.size(a.profiles, "profiles");
    checks.execution(a.execution, 0);
    if (checks.failed() || a.tensors == 0 || a.profiles == 0) return;
    checks.require(a.sizes != nullptr, "sizes is missing");
    checks.require(a.averages && a.average_dtypes, "averages is missing");
    checks.require(a.parameters && a.parameter_dtypes, "parameters is missing");
    checks.tensor(a.decay, "decay", is_float_or_double);
    for (int64_t i = 0; i < a.tensors && !checks.failed(); ++i) {
      checks.size(a.sizes[i], "sizes");
      if (a.sizes[i] == 0) continue;
      checks.require(a.parameters[i] && is_floating(a.parameter_dtypes[i]),
                     "parameters[%lld] is missing or not floating", static_cast<long long>(i));
      for (int64_t k = 0; k < a.profiles; ++k) {
        const int64_t at = k * a.tensors + i;
        checks.require(a.averages[at] && is_floating(a.average_dtypes[at]), "averages[%lld] is missing or not floating",
                       static_cast<long long>(at));
      }
    }
  };
  return run(__func__, args, check, empty, &cpu::Kernels::ema_update, nullptr);
}
}
