#include <variate/relaxed.h>

#include "run.h"

using namespace variate;

namespace {

void check_temperature(Checks& checks, const variate_tensor& temperature, double value) {
  checks.optional_tensor(temperature, "temperature", is_float_or_double);
  checks.require(temperature.data != nullptr || value > 0.0, "temperature_value must be above 0, got %g", value);
}

template <class Args>
bool no_groups(const Args& a) {
  return a.rows == 0 || a.groups == 0 || a.categories == 0;
}

template <class Args>
void check_groups(Checks& checks, const Args& a) {
  checks.execution(a.execution, 0);
  checks.size(a.rows, "rows");
  checks.size(a.groups, "groups");
  checks.size(a.categories, "categories");
  check_temperature(checks, a.temperature, a.temperature_value);
}

template <class Args>
bool no_elements(const Args& a) {
  return a.rows == 0 || a.cols == 0;
}

template <class Args>
void check_elements(Checks& checks, const Args& a) {
  checks.execution(a.execution, 0);
  checks.size(a.rows, "rows");
  checks.size(a.cols, "cols");
}

void check_hard(Checks& checks, int32_t hard) {
  checks.require(hard == 0 || hard == 1, "hard must be 0 or 1, got %d", static_cast<int>(hard));
}

// What a gradient is made of: the soft sample, or the logits, with a key if they had noise.
template <class Args>
void check_source(Checks& checks, const Args& a, const variate_tensor& sample, const char* name) {
  checks.require((sample.data != nullptr) != (a.logits.data != nullptr), "exactly one of %s and logits must be given",
                 name);
  checks.optional_tensor(sample, name, is_floating);
  checks.optional_tensor(a.logits, "logits", is_floating);
}

}  // namespace

extern "C" {

VARIATE_API variate_status variate_gumbel_softmax(const variate_gumbel_softmax_args* args) {
  const auto check = [](Checks& checks, const variate_gumbel_softmax_args& a) {
    check_groups(checks, a);
    checks.noise(a.noise, a.rows);
    check_hard(checks, a.hard);
    if (no_groups(a)) return;
    checks.tensor(a.logits, "logits", is_floating);
    checks.tensor(a.y, "y", is_floating);
  };
  return run(__func__, args, check, no_groups, &cpu::Kernels::gumbel_softmax, nullptr);
}

VARIATE_API variate_status variate_gumbel_softmax_backward(const variate_gumbel_softmax_backward_args* args) {
  const auto check = [](Checks& checks, const variate_gumbel_softmax_backward_args& a) {
    check_groups(checks, a);
    if (a.noise.key) checks.noise(a.noise, a.rows);
    if (no_groups(a)) return;
    check_source(checks, a, a.y, "y");
    checks.tensor(a.grad_y, "grad_y", is_floating);
    checks.tensor(a.grad_logits, "grad_logits", is_floating);
  };
  return run(__func__, args, check, no_groups, &cpu::Kernels::gumbel_softmax_backward, nullptr);
}

VARIATE_API variate_status variate_relaxed_bernoulli_rsample(const variate_relaxed_bernoulli_rsample_args* args) {
  const auto check = [](Checks& checks, const variate_relaxed_bernoulli_rsample_args& a) {
    check_elements(checks, a);
    check_temperature(checks, a.temperature, a.temperature_value);
    checks.noise(a.noise, a.rows);
    check_hard(checks, a.hard);
    if (no_elements(a)) return;
    checks.tensor(a.logits, "logits", is_floating);
    checks.tensor(a.z, "z", is_floating);
  };
  return run(__func__, args, check, no_elements, &cpu::Kernels::relaxed_bernoulli_rsample, nullptr);
}

VARIATE_API variate_status
variate_relaxed_bernoulli_rsample_backward(const variate_relaxed_bernoulli_rsample_backward_args* args) {
  const auto check = [](Checks& checks, const variate_relaxed_bernoulli_rsample_backward_args& a) {
    check_elements(checks, a);
    check_temperature(checks, a.temperature, a.temperature_value);
    if (a.noise.key) checks.noise(a.noise, a.rows);
    if (no_elements(a)) return;
    check_source(checks, a, a.z, "z");
    checks.tensor(a.grad_z, "grad_z", is_floating);
    checks.tensor(a.grad_logits, "grad_logits", is_floating);
  };
  return run(__func__, args, check, no_elements, &cpu::Kernels::relaxed_bernoulli_rsample_backward, nullptr);
}

VARIATE_API variate_status variate_bernoulli_straight_through(const variate_bernoulli_straight_through_args* args) {
  const auto check = [](Checks& checks, const variate_bernoulli_straight_through_args& a) {
    check_elements(checks, a);
    checks.noise(a.noise, a.rows);
    if (no_elements(a)) return;
    checks.tensor(a.logits, "logits", is_floating);
    checks.tensor(a.out, "out", is_floating);
  };
  return run(__func__, args, check, no_elements, &cpu::Kernels::bernoulli_straight_through, nullptr);
}
}
