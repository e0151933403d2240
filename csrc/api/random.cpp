#include <variate/random.h>

#include "run.h"

using namespace variate;

namespace {

template <class Args>
bool no_elements(const Args& a) {
  return a.rows == 0 || a.cols == 0;
}

template <class Args>
void check_shape(Checks& checks, const Args& a) {
  checks.execution(a.execution, 0);
  checks.size(a.rows, "rows");
  checks.size(a.cols, "cols");
  checks.noise(a.noise, a.rows);
}

template <bool (*dtype)(variate_dtype)>
void check_draw(Checks& checks, const variate_random_args& a) {
  check_shape(checks, a);
  if (!no_elements(a)) checks.tensor(a.out, "out", dtype);
}

}  // namespace

extern "C" {

VARIATE_API variate_status variate_bits(const variate_random_args* args) {
  return run(__func__, args, check_draw<is_int64>, no_elements, &cpu::Kernels::bits, VARIATE_CUDA_KERNEL(bits));
}

VARIATE_API variate_status variate_uniform(const variate_random_args* args) {
  return run(__func__, args, check_draw<is_floating>, no_elements, &cpu::Kernels::uniform,
             VARIATE_CUDA_KERNEL(uniform));
}

VARIATE_API variate_status variate_normal(const variate_random_args* args) {
  return run(__func__, args, check_draw<is_floating>, no_elements, &cpu::Kernels::normal, VARIATE_CUDA_KERNEL(normal));
}

VARIATE_API variate_status variate_exponential(const variate_random_args* args) {
  return run(__func__, args, check_draw<is_floating>, no_elements, &cpu::Kernels::exponential,
             VARIATE_CUDA_KERNEL(exponential));
}

VARIATE_API variate_status variate_gumbel(const variate_random_args* args) {
  return run(__func__, args, check_draw<is_floating>, no_elements, &cpu::Kernels::gumbel, VARIATE_CUDA_KERNEL(gumbel));
}

VARIATE_API variate_status variate_bernoulli(const variate_bernoulli_args* args) {
  const auto check = [](Checks& checks, const variate_bernoulli_args& a) {
    check_shape(checks, a);
    if (no_elements(a)) return;
    checks.tensor(a.probs, "probs", is_floating);
    checks.tensor(a.out, "out", is_any);
  };
  return run(__func__, args, check, no_elements, &cpu::Kernels::bernoulli, VARIATE_CUDA_KERNEL(bernoulli));
}

VARIATE_API variate_status variate_randint(const variate_randint_args* args) {
  const auto check = [](Checks& checks, const variate_randint_args& a) {
    check_shape(checks, a);
    const uint64_t range = static_cast<uint64_t>(a.high) - static_cast<uint64_t>(a.low);
    checks.require(a.low < a.high && range <= (uint64_t{1} << 32),
                   "high - low must lie in [1, 2^32], got low = %lld, high = %lld", static_cast<long long>(a.low),
                   static_cast<long long>(a.high));
    if (!no_elements(a)) checks.tensor(a.out, "out", is_int64);
  };
  return run(__func__, args, check, no_elements, &cpu::Kernels::randint, VARIATE_CUDA_KERNEL(randint));
}

VARIATE_API variate_status variate_categorical(const variate_categorical_args* args) {
  const auto empty = [](const variate_categorical_args& a) { return a.rows == 0 || a.groups == 0; };
  const auto check = [](Checks& checks, const variate_categorical_args& a) {
    checks.execution(a.execution, 0);
    checks.size(a.rows, "rows");
    checks.size(a.groups, "groups");
    checks.require(a.categories > 0, "categories must be at least 1, got %lld", static_cast<long long>(a.categories));
    checks.noise(a.noise, a.rows);
    if (a.rows == 0 || a.groups == 0) return;
    checks.tensor(a.logits, "logits", is_floating);
    checks.tensor(a.out, "out", is_int64);
  };
  return run(__func__, args, check, empty, &cpu::Kernels::categorical, VARIATE_CUDA_KERNEL(categorical));
}

VARIATE_API variate_status variate_fold_in(const variate_fold_in_args* args) {
  const auto empty = [](const variate_fold_in_args& a) { return a.rows == 0; };
  const auto check = [](Checks& checks, const variate_fold_in_args& a) {
    checks.execution(a.execution, 0);
    checks.size(a.rows, "rows");
    if (a.rows == 0) return;
    checks.tensor(a.keys, "keys", is_int64);
    checks.tensor(a.data, "data", is_int64);
    checks.tensor(a.out, "out", is_int64);
  };
  return run(__func__, args, check, empty, &cpu::Kernels::fold_in, VARIATE_CUDA_KERNEL(fold_in));
}
}
