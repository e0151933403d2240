#include <variate/lattice.h>
#include <variate/math/lattice.hpp>

#include "run.h"

using namespace variate;

namespace {

template <class Args>
bool no_chains(const Args& a) {
  return a.chains == 0;
}

void check_side(Checks& checks, const variate_lattice& lattice, int64_t size, const char* name) {
  checks.require(size >= 2 && (lattice.boundary == VARIATE_OPEN || size % 2 == 0),
                 "lattice.%s must be at least 2, and even with VARIATE_PERIODIC, got %lld", name,
                 static_cast<long long>(size));
}

template <class Args>
void check_lattice(Checks& checks, const Args& a) {
  const variate_lattice& lattice = a.lattice;
  checks.require(lattice.dimensions == 2 || lattice.dimensions == 3, "lattice.dimensions must be 2 or 3, got %d",
                 static_cast<int>(lattice.dimensions));
  checks.require(lattice.boundary == VARIATE_PERIODIC || lattice.boundary == VARIATE_OPEN,
                 "lattice.boundary must be VARIATE_PERIODIC or VARIATE_OPEN, got %d",
                 static_cast<int>(lattice.boundary));
  check_side(checks, lattice, lattice.width, "width");
  check_side(checks, lattice, lattice.height, "height");
  if (lattice.dimensions == 3) {
    check_side(checks, lattice, lattice.depth, "depth");
  } else {
    checks.require(lattice.depth == 1, "lattice.depth must be 1 in two dimensions, got %lld",
                   static_cast<long long>(lattice.depth));
  }
  checks.size(a.chains, "chains");
}

void check_pack(Checks& checks, const variate_ising_pack_args& a) {
  check_lattice(checks, a);
  checks.execution(a.execution, 0);
  if (a.chains == 0) return;
  checks.require(a.spins != nullptr, "spins is missing");
  checks.require(a.words != nullptr, "words is missing");
}

bool is_double(variate_dtype dtype) { return dtype == VARIATE_FLOAT64; }

}  // namespace

extern "C" {

VARIATE_API int64_t variate_lattice_words(int64_t width) { return math::words_in_row(width); }

VARIATE_API variate_status variate_ising_pack(const variate_ising_pack_args* args) {
  return run(__func__, args, check_pack, no_chains, &cpu::Kernels::ising_pack, VARIATE_CUDA_KERNEL(ising_pack));
}

VARIATE_API variate_status variate_ising_unpack(const variate_ising_pack_args* args) {
  return run(__func__, args, check_pack, no_chains, &cpu::Kernels::ising_unpack, VARIATE_CUDA_KERNEL(ising_unpack));
}

VARIATE_API uint64_t variate_ising_gibbs_workspace(const variate_ising_gibbs_args* args) {
  if (!args) return 0;
#if defined(VARIATE_WITH_CUDA)
  if (args->execution.device == VARIATE_CUDA) return cuda::ising_gibbs_workspace(*args);
#endif
  return cpu::ising_workspace(*args);
}

VARIATE_API variate_status variate_ising_gibbs(const variate_ising_gibbs_args* args) {
  const auto check = [](Checks& checks, const variate_ising_gibbs_args& a) {
    check_lattice(checks, a);
    checks.size(a.sweeps, "sweeps");
    checks.noise(a.noise, a.chains);
    checks.require(a.moments == nullptr || a.measure_every >= 1, "measure_every must be at least 1, got %lld",
                   static_cast<long long>(a.measure_every));
    if (checks.failed()) return;
    checks.execution(a.execution, variate_ising_gibbs_workspace(&a));
    if (a.chains == 0) return;
    checks.tensor(a.beta, "beta", is_double);
    checks.tensor(a.coupling, "coupling", is_double);
    checks.tensor(a.field, "field", is_double);
    checks.require(a.words != nullptr, "words is missing");
  };
  return run(__func__, args, check, no_chains, &cpu::Kernels::ising_gibbs, VARIATE_CUDA_KERNEL(ising_gibbs));
}

VARIATE_API uint64_t variate_ising_measure_workspace(const variate_ising_measure_args* args) {
  return args && args->execution.device == VARIATE_CPU ? cpu::ising_workspace(*args) : 0;
}

VARIATE_API variate_status variate_ising_measure(const variate_ising_measure_args* args) {
  const auto check = [](Checks& checks, const variate_ising_measure_args& a) {
    check_lattice(checks, a);
    checks.require(a.distance >= 0 && a.distance < a.lattice.width, "distance must lie in [0, width), got %lld",
                   static_cast<long long>(a.distance));
    if (checks.failed()) return;
    checks.execution(a.execution, variate_ising_measure_workspace(&a));
    if (a.chains == 0) return;
    checks.require(a.words != nullptr, "words is missing");
    checks.require(a.sums != nullptr, "sums is missing");
    checks.require(a.distance == 0 || a.correlation != nullptr, "correlation is missing");
  };
  return run(__func__, args, check, no_chains, &cpu::Kernels::ising_measure, VARIATE_CUDA_KERNEL(ising_measure));
}
}
