#include "ops.h"

namespace variate::torch_ops {

namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> importance_weighted_bound(Tensor log_weight, bool leave_one_out) {
  STD_TORCH_CHECK(log_weight.dim() == 2, "log_weight must be [K, B]");
  const Execution execution(log_weight);
  const View view(log_weight);
  const bool wide = log_weight.scalar_type() == ScalarType::Double;
  const ScalarType dtype = wide ? ScalarType::Double : ScalarType::Float;
  const int64_t columns[] = {log_weight.size(1)};
  const torch::headeronly::IntHeaderOnlyArrayRef per_datum(columns, 1);
  Tensor bound = new_tensor(per_datum, dtype, log_weight);
  Tensor weight = new_tensor(log_weight.sizes(), dtype, log_weight);
  Tensor size = new_tensor(per_datum, dtype, log_weight);
  Tensor signal = leave_one_out ? new_tensor(log_weight.sizes(), dtype, log_weight) : nothing(weight);
  variate_importance_weighted_bound_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.rows = log_weight.size(0);
  args.cols = log_weight.size(1);
  args.log_weight = view.get();
  args.bound = column(bound);
  args.weight = View(weight).get();
  args.effective_sample_size = column(size);
  if (leave_one_out) args.learning_signal = View(signal).get();
  check(variate_importance_weighted_bound(&args));
  return {bound, weight, size, signal};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(variate, library) {
  library.def("importance_weighted_bound(Tensor log_weight, bool leave_one_out) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(variate, CPU, library) {
  library.impl("importance_weighted_bound", TORCH_BOX(&importance_weighted_bound));
}

}  // namespace variate::torch_ops
