#include "ops.h"

namespace variate::torch_ops {

namespace {

bool on_device_of(const Tensor& tensor, const Tensor& like) {
  return tensor.is_cuda() == like.is_cuda() && tensor.get_device_index() == like.get_device_index();
}

// A tensor [rows, cols] of this type whose rows are dense.
variate_tensor matrix(const Tensor& tensor, ScalarType type, int64_t rows, int64_t cols, const Tensor& like,
                      const char* message) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == cols &&
                      tensor.scalar_type() == type && tensor.is_contiguous() && on_device_of(tensor, like),
                  message);
  return {tensor.mutable_data_ptr(), dtype_of(type), cols, 1};
}

variate_tensor vector(const Tensor& tensor, int64_t size, const Tensor& like, const char* message) {
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == size && tensor.scalar_type() == ScalarType::Float &&
                      on_device_of(tensor, like),
                  message);
  return column(tensor);
}

void rbm_gibbs(Tensor visible, Tensor hidden, Tensor weight, Tensor visible_bias, Tensor hidden_bias, Tensor beta,
               OptionalTensor clamp, int64_t steps, int64_t first_step, int64_t visible_kind, int64_t categories,
               OptionalTensor visible_probs, OptionalTensor hidden_probs, Tensor key, int64_t first_sample) {
  STD_TORCH_CHECK(visible.dim() == 2 && weight.dim() == 2 && weight.scalar_type() == ScalarType::Float &&
                      on_device_of(weight, visible),
                  "visible must be [chains, units], and weight float32 [visible units, hidden units]");
  const int64_t rows = visible.size(0), units = weight.size(0), hidden_units = weight.size(1);
  const bool categorical = visible_kind == VARIATE_VISIBLE_CATEGORICAL;
  STD_TORCH_CHECK(!categorical || (categories >= 1 && units % categories == 0),
                  "categories must divide the visible units");
  const int64_t columns = categorical ? units / categories : units;
  const Noise noise(key, rows, first_sample, &visible);
  Execution execution(visible);
  variate_rbm_gibbs_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.noise = noise.get();
  args.rows = rows;
  args.visible_units = units;
  args.hidden_units = hidden_units;
  args.visible_kind = static_cast<variate_visible_kind>(visible_kind);
  args.categories = categorical ? categories : 0;
  args.steps = steps;
  args.first_step = first_step;
  const ScalarType states = visible_kind == VARIATE_VISIBLE_GAUSSIAN ? ScalarType::Float : ScalarType::Byte;
  args.visible = matrix(visible, states, rows, columns, visible, "visible must be contiguous [chains, visible units]");
  args.hidden = matrix(hidden, ScalarType::Byte, rows, hidden_units, visible,
                       "hidden must be contiguous uint8 [chains, hidden units]");
  args.weight = {weight.mutable_data_ptr(), VARIATE_FLOAT32, weight.stride(0), weight.stride(1)};
  args.visible_bias = vector(visible_bias, units, visible, "visible_bias must be float32 [visible units]");
  args.hidden_bias = vector(hidden_bias, hidden_units, visible, "hidden_bias must be float32 [hidden units]");
  STD_TORCH_CHECK(beta.scalar_type() == ScalarType::Float && on_device_of(beta, visible) &&
                      (beta.dim() == 0 || (beta.dim() == 1 && beta.size(0) == rows)),
                  "beta must be float32, a number or [chains]");
  args.beta = column(beta);
  if (clamp) {
    const int64_t dim = clamp->dim();
    STD_TORCH_CHECK(clamp->scalar_type() == ScalarType::Byte && on_device_of(*clamp, visible) &&
                        (dim == 1 || (dim == 2 && clamp->size(0) == rows)) && clamp->size(dim - 1) == columns,
                    "clamp must be uint8 [units] or [chains, units]");
    args.clamp = {clamp->mutable_data_ptr(), VARIATE_UINT8, dim == 2 ? clamp->stride(0) : 0, clamp->stride(dim - 1)};
  }
  if (visible_probs) {
    args.visible_probs = matrix(*visible_probs, ScalarType::Float, rows, units, visible,
                                "visible_probs must be contiguous float32 [chains, visible units]");
  }
  if (hidden_probs) {
    args.hidden_probs = matrix(*hidden_probs, ScalarType::Float, rows, hidden_units, visible,
                               "hidden_probs must be contiguous float32 [chains, hidden units]");
  }
  args.execution = execution.with_workspace(variate_rbm_gibbs_workspace(&args));
  check(variate_rbm_gibbs(&args));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(variate, library) {
  library.def(
      "rbm_gibbs(Tensor(a!) visible, Tensor(b!) hidden, Tensor weight, Tensor visible_bias, Tensor hidden_bias, "
      "Tensor beta, Tensor? clamp, SymInt steps, SymInt first_step, int visible_kind, int categories, "
      "Tensor(c!)? visible_probs, Tensor(d!)? hidden_probs, Tensor key, SymInt first_sample) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(variate, CPU, library) { library.impl("rbm_gibbs", TORCH_BOX(&rbm_gibbs)); }

}  // namespace variate::torch_ops
