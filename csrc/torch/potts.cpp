#include "ops.h"

namespace variate::torch_ops {

namespace {

// float64, one number for all chains or one each.
variate_tensor per_chain(const Tensor& tensor, int64_t chains, const char* message) {
  const bool fits = tensor.dim() == 0 || (tensor.dim() == 1 && tensor.size(0) == chains);
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Double && fits, message);
  return column(tensor);
}

void potts_gibbs(Tensor states, int64_t q, bool open, Tensor beta, Tensor coupling, OptionalTensor field,
                 int64_t sweeps, int64_t first_step, Tensor key, int64_t first_sample) {
  const int64_t dimensions = states.dim() - 1;
  STD_TORCH_CHECK(
      states.scalar_type() == ScalarType::Byte && states.is_contiguous() && (dimensions == 2 || dimensions == 3),
      "states must be a contiguous uint8 tensor [chains, (depth,) height, width]");
  const int64_t chains = states.size(0);
  const Noise noise(key, chains, first_sample, &states);
  Execution execution(states);
  variate_potts_gibbs_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.noise = noise.get();
  args.lattice.dimensions = static_cast<int32_t>(dimensions);
  args.lattice.boundary = open ? VARIATE_OPEN : VARIATE_PERIODIC;
  args.lattice.depth = dimensions == 3 ? states.size(1) : 1;
  args.lattice.height = states.size(dimensions - 1);
  args.lattice.width = states.size(dimensions);
  args.chains = chains;
  args.categories = q;
  args.sweeps = sweeps;
  args.first_step = first_step;
  args.beta = per_chain(beta, chains, "beta must be float64, 0-d or [chains]");
  args.coupling = per_chain(coupling, chains, "coupling must be float64, 0-d or [chains]");
  if (field) {
    const int64_t rows = field->dim() == 2 ? field->size(0) : chains;
    STD_TORCH_CHECK(field->scalar_type() == ScalarType::Double && (field->dim() == 1 || field->dim() == 2) &&
                        field->size(field->dim() - 1) == q && rows == chains,
                    "field must be float64 [q] or [chains, q]");
    const int64_t row_stride = field->dim() == 2 ? field->stride(0) : 0;
    args.field = {field->mutable_data_ptr(), VARIATE_FLOAT64, row_stride, field->stride(field->dim() - 1)};
  }
  args.states = static_cast<uint8_t*>(states.mutable_data_ptr());
  args.execution = execution.with_workspace(variate_potts_gibbs_workspace(&args));
  check(variate_potts_gibbs(&args));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(variate, library) {
  library.def(
      "potts_gibbs(Tensor(a!) states, SymInt q, bool open, Tensor beta, Tensor coupling, Tensor? field, SymInt sweeps, "
      "SymInt first_step, Tensor key, SymInt first_sample) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(variate, CPU, library) { library.impl("potts_gibbs", TORCH_BOX(&potts_gibbs)); }

}  // namespace variate::torch_ops
