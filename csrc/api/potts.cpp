#include <variate/potts.h>

#include "../cpu/potts.h"
#include "run.h"

using namespace variate;

namespace {

bool is_double(variate_dtype dtype) { return dtype == VARIATE_FLOAT64; }

void check_sides(Checks& checks, const variate_lattice& lattice) {
  checks.require(lattice.dimensions == 2 || lattice.dimensions == 3, "lattice.dimensions must be 2 or 3, got %d",
                 static_cast<int>(lattice.dimensions));
  checks.require(lattice.boundary == VARIATE_PERIODIC || lattice.boundary == VARIATE_OPEN,
                 "lattice.boundary must be VARIATE_PERIODIC or VARIATE_OPEN, got %d",
                 static_cast<int>(lattice.boundary));
  const bool periodic = lattice.boundary == VARIATE_PERIODIC;
  const auto side = [&](int64_t value, const char* name) {
    checks.require(value >= 2, "lattice.%s must be at least 2, got %lld", name, static_cast<long long>(value));
    checks.require(!periodic || value % 2 == 0, "lattice.%s must be even with VARIATE_PERIODIC, got %lld", name,
                   static_cast<long long>(value));
  };
  if (lattice.dimensions == 3) side(lattice.depth, "depth");
  checks.require(lattice.dimensions == 3 || lattice.depth == 1, "lattice.depth must be 1 in two dimensions, got %lld",
                 static_cast<long long>(lattice.depth));
  side(lattice.height, "height");
  side(lattice.width, "width");
}

bool nothing_to_do(const variate_potts_gibbs_args& a) { return a.chains == 0 || a.sweeps == 0; }

}  // namespace

extern "C" {

VARIATE_API uint64_t variate_potts_gibbs_workspace(const variate_potts_gibbs_args* args) {
  if (!args || args->execution.device != VARIATE_CPU || nothing_to_do(*args)) return 0;
  const cpu::PottsLayout layout(args->lattice);
  return static_cast<uint64_t>(cpu::PottsLayout::copies(*args) * layout.size());
}

VARIATE_API variate_status variate_potts_gibbs(const variate_potts_gibbs_args* args) {
  const auto check = [](Checks& checks, const variate_potts_gibbs_args& a) {
    checks.size(a.chains, "chains");
    checks.size(a.sweeps, "sweeps");
    checks.require(a.categories >= 2 && a.categories <= 255, "categories must lie in [2, 255], got %lld",
                   static_cast<long long>(a.categories));
    check_sides(checks, a.lattice);
    checks.noise(a.noise, a.chains);
    if (checks.failed()) return;
    checks.execution(a.execution, variate_potts_gibbs_workspace(&a));
    if (nothing_to_do(a)) return;
    checks.tensor(a.beta, "beta", is_double);
    checks.tensor(a.coupling, "coupling", is_double);
    checks.optional_tensor(a.field, "field", is_double);
    checks.require(a.states != nullptr, "states is missing");
  };
  return run(__func__, args, check, nothing_to_do, &cpu::Kernels::potts_gibbs, nullptr);
}
}
