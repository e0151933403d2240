// From a checked call to a kernel.
#pragma once

#include <type_traits>

#include "../cpu/kernels.h"
#include "checks.h"

#if defined(VARIATE_WITH_CUDA)
#include "../cuda/kernels.h"
#define VARIATE_CUDA_KERNEL(name) &variate::cuda::name
#else
#define VARIATE_CUDA_KERNEL(name) nullptr
#endif

namespace variate {

// Runs `check`, then the kernel of the call's device; `cuda_kernel` is nullptr for an op that has none. A call without
// elements is done once its fields are right.
template <class Args>
variate_status run(const char* function, const Args* args, std::type_identity_t<void (*)(Checks&, const Args&)> check,
                   std::type_identity_t<bool (*)(const Args&)> empty, void (*cpu::Kernels::*cpu_kernel)(const Args&),
                   std::type_identity_t<variate_status (*)(const Args&)> cuda_kernel) {
  Checks checks(function);
  checks.require(args != nullptr, "args is NULL");
  if (!checks.failed()) {
    checks.require(args->struct_size == sizeof(Args), "struct_size must be %llu, got %u",
                   static_cast<unsigned long long>(sizeof(Args)), args->struct_size);
  }
  if (!checks.failed()) check(checks, *args);
  if (checks.failed()) return VARIATE_INVALID_ARGUMENT;
  if (empty(*args)) return VARIATE_OK;
  if (args->execution.device == VARIATE_CUDA) {
    if (cuda_kernel) return cuda_kernel(*args);
#if defined(VARIATE_WITH_CUDA)
    set_error("%s: has no CUDA kernel", function);
#else
    set_error("%s: this libvariate was built without CUDA", function);
#endif
    return VARIATE_UNSUPPORTED;
  }
  (cpu::kernels().*cpu_kernel)(*args);
  return VARIATE_OK;
}

}  // namespace variate
