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

// Columns of a layer's states.
int64_t stored(int64_t units, bool packed) { return packed ? (units + 7) / 8 : units; }

// The rows and the machine that calls share.
template <class Args>
void set_machine(Args& args, const Tensor& visible, const Tensor& weight, const Tensor& visible_bias,
                 const Tensor& hidden_bias, int64_t visible_kind, int64_t categories, bool packed = false) {
  STD_TORCH_CHECK(visible.dim() == 2 && weight.dim() == 2 && weight.scalar_type() == ScalarType::Float &&
                      on_device_of(weight, visible),
                  "visible must be [chains, units], and weight float32 [visible units, hidden units]");
  const int64_t units = weight.size(0), hidden_units = weight.size(1);
  const bool categorical = visible_kind == VARIATE_VISIBLE_CATEGORICAL;
  STD_TORCH_CHECK(!categorical || (categories >= 1 && units % categories == 0),
                  "categories must divide the visible units");
  args.struct_size = sizeof args;
  args.visible_units = units;
  args.hidden_units = hidden_units;
  args.visible_kind = static_cast<variate_visible_kind>(visible_kind);
  args.categories = categorical ? categories : 0;
  const ScalarType states = visible_kind == VARIATE_VISIBLE_GAUSSIAN ? ScalarType::Float : ScalarType::Byte;
  args.visible = matrix(visible, states, visible.size(0), categorical ? units / categories : stored(units, packed),
                        visible, "visible must be contiguous [chains, visible units], or bits of Bernoulli units");
  args.weight = {weight.mutable_data_ptr(), VARIATE_FLOAT32, weight.stride(0), weight.stride(1)};
  args.visible_bias = vector(visible_bias, units, visible, "visible_bias must be float32 [visible units]");
  args.hidden_bias = vector(hidden_bias, hidden_units, visible, "hidden_bias must be float32 [hidden units]");
}

// A dense vector of a call.
template <class T>
T* numbers(const Tensor& tensor, ScalarType type, int64_t size, const Tensor& like, const char* message) {
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == size && tensor.scalar_type() == type &&
                      tensor.is_contiguous() && on_device_of(tensor, like),
                  message);
  return static_cast<T*>(tensor.mutable_data_ptr());
}

void rbm_gibbs(Tensor visible, Tensor hidden, Tensor weight, Tensor visible_bias, Tensor hidden_bias, Tensor beta,
               OptionalTensor clamp, int64_t steps, int64_t first_step, int64_t visible_kind, int64_t categories,
               OptionalTensor visible_probs, OptionalTensor hidden_probs, Tensor key, int64_t first_sample) {
  variate_rbm_gibbs_args args = {};
  // Bits by their number of columns; of single units bits and bytes are the same.
  const bool packed = visible_kind == VARIATE_VISIBLE_BERNOULLI && visible.dim() == 2 && hidden.dim() == 2 &&
                      weight.dim() == 2 && (visible.size(1) != weight.size(0) || hidden.size(1) != weight.size(1));
  set_machine(args, visible, weight, visible_bias, hidden_bias, visible_kind, categories, packed);
  args.packed = packed;
  const int64_t rows = visible.size(0);
  const Noise noise(key, rows, first_sample, &visible);
  Execution execution(visible);
  args.execution = execution.get();
  args.noise = noise.get();
  args.rows = rows;
  args.steps = steps;
  args.first_step = first_step;
  args.hidden = matrix(hidden, ScalarType::Byte, rows, stored(args.hidden_units, packed), visible,
                       "hidden must be contiguous uint8 [chains, hidden units], or bits as visible");
  STD_TORCH_CHECK(beta.scalar_type() == ScalarType::Float && on_device_of(beta, visible) &&
                      (beta.dim() == 0 || (beta.dim() == 1 && beta.size(0) == rows)),
                  "beta must be float32, a number or [chains]");
  args.beta = column(beta);
  if (clamp) {
    const int64_t dim = clamp->dim();
    STD_TORCH_CHECK(clamp->scalar_type() == ScalarType::Byte && on_device_of(*clamp, visible) &&
                        (dim == 1 || (dim == 2 && clamp->size(0) == rows)) &&
                        clamp->size(dim - 1) == (args.categories ? visible.size(1) : args.visible_units),
                    "clamp must be uint8 [units] or [chains, units]");
    args.clamp = {clamp->mutable_data_ptr(), VARIATE_UINT8, dim == 2 ? clamp->stride(0) : 0, clamp->stride(dim - 1)};
  }
  if (visible_probs) {
    args.visible_probs = matrix(*visible_probs, ScalarType::Float, rows, args.visible_units, visible,
                                "visible_probs must be contiguous float32 [chains, visible units]");
  }
  if (hidden_probs) {
    args.hidden_probs = matrix(*hidden_probs, ScalarType::Float, rows, args.hidden_units, visible,
                               "hidden_probs must be contiguous float32 [chains, hidden units]");
  }
  args.execution = execution.with_workspace(variate_rbm_gibbs_workspace(&args));
  check(variate_rbm_gibbs(&args));
}

void rbm_anneal(Tensor visible, Tensor weight, Tensor visible_bias, Tensor hidden_bias, Tensor base_bias, Tensor betas,
                Tensor log_weights, int64_t first_step, int64_t visible_kind, int64_t categories, Tensor key,
                int64_t first_sample) {
  variate_rbm_anneal_args args = {};
  set_machine(args, visible, weight, visible_bias, hidden_bias, visible_kind, categories);
  const int64_t rows = visible.size(0), count = betas.numel();
  STD_TORCH_CHECK(count >= 1, "betas must hold at least one number");
  const Noise noise(key, rows, first_sample, &visible);
  Execution execution(visible);
  args.execution = execution.get();
  args.noise = noise.get();
  args.rows = rows;
  args.steps = count - 1;
  args.first_step = first_step;
  args.base_bias = vector(base_bias, args.visible_units, visible, "base_bias must be float32 [visible units]");
  args.betas = numbers<double>(betas, ScalarType::Double, count, visible, "betas must be contiguous float64");
  args.log_weights = numbers<double>(log_weights, ScalarType::Double, rows, visible,
                                     "log_weights must be contiguous float64 [chains]");
  args.execution = execution.with_workspace(variate_rbm_anneal_workspace(&args));
  check(variate_rbm_anneal(&args));
}

void rbm_temper(Tensor visible, Tensor hidden, Tensor weight, Tensor visible_bias, Tensor hidden_bias, Tensor betas,
                Tensor accepted, int64_t rounds, int64_t steps, int64_t first_round, int64_t visible_kind,
                int64_t categories, Tensor key, int64_t first_sample) {
  variate_rbm_temper_args args = {};
  set_machine(args, visible, weight, visible_bias, hidden_bias, visible_kind, categories);
  const int64_t rows = visible.size(0), temperatures = betas.numel();
  STD_TORCH_CHECK(temperatures >= 1 && rows % temperatures == 0 && key.dim() == 1,
                  "visible must have a row for each chain at each of betas, and key be one key");
  const Noise noise(key, rows / temperatures, first_sample, &visible);
  Execution execution(visible);
  args.execution = execution.get();
  args.noise = noise.get();
  args.chains = rows / temperatures;
  args.temperatures = temperatures;
  args.rounds = rounds;
  args.steps = steps;
  args.first_round = first_round;
  args.hidden = matrix(hidden, ScalarType::Byte, rows, args.hidden_units, visible,
                       "hidden must be contiguous uint8 [chains, hidden units]");
  args.betas = numbers<double>(betas, ScalarType::Double, temperatures, visible, "betas must be contiguous float64");
  args.accepted = numbers<int64_t>(accepted, ScalarType::Long, temperatures - 1, visible,
                                   "accepted must be contiguous int64, one fewer than betas");
  args.execution = execution.with_workspace(variate_rbm_temper_workspace(&args));
  check(variate_rbm_temper(&args));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(variate, library) {
  library.def(
      "rbm_gibbs(Tensor(a!) visible, Tensor(b!) hidden, Tensor weight, Tensor visible_bias, Tensor hidden_bias, "
      "Tensor beta, Tensor? clamp, SymInt steps, SymInt first_step, int visible_kind, int categories, "
      "Tensor(c!)? visible_probs, Tensor(d!)? hidden_probs, Tensor key, SymInt first_sample) -> ()");
  library.def(
      "rbm_anneal(Tensor(a!) visible, Tensor weight, Tensor visible_bias, Tensor hidden_bias, Tensor base_bias, "
      "Tensor betas, Tensor(b!) log_weights, SymInt first_step, int visible_kind, int categories, Tensor key, "
      "SymInt first_sample) -> ()");
  library.def(
      "rbm_temper(Tensor(a!) visible, Tensor(b!) hidden, Tensor weight, Tensor visible_bias, Tensor hidden_bias, "
      "Tensor betas, Tensor(c!) accepted, SymInt rounds, SymInt steps, SymInt first_round, int visible_kind, "
      "int categories, Tensor key, SymInt first_sample) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(variate, CPU, library) {
  library.impl("rbm_gibbs", TORCH_BOX(&rbm_gibbs));
  library.impl("rbm_anneal", TORCH_BOX(&rbm_anneal));
  library.impl("rbm_temper", TORCH_BOX(&rbm_temper));
}

}  // namespace variate::torch_ops
