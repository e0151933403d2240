#include "ops.h"

namespace variate::torch_ops {

namespace {

bool is_double(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Double; }
bool is_double(const OptionalTensor& tensor) { return tensor && is_double(*tensor); }

bool is_floating(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

// The floating dtype that torch promotes to; integers have no say.
ScalarType promote(ScalarType type, const Tensor& other) {
  if (!is_floating(other) || other.scalar_type() == type) return type;
  return type == ScalarType::Double || is_double(other) ? ScalarType::Double : ScalarType::Float;
}
ScalarType promote(ScalarType type, const OptionalTensor& other) { return other ? promote(type, *other) : type; }

// A new tensor for the terms of a call, or for their sums by row.
template <class... Others>
Tensor new_result(bool elementwise, int64_t rows, const Tensor& like, const Others&... others) {
  if (elementwise) {
    ScalarType type = like.scalar_type();
    ((type = promote(type, others)), ...);
    return new_tensor(like.sizes(), type, like);
  }
  const bool wide = (is_double(like) || ... || is_double(others));
  const int64_t sizes[] = {rows};
  return new_tensor(torch::headeronly::IntHeaderOnlyArrayRef(sizes, 1), wide ? ScalarType::Double : ScalarType::Float,
                    like);
}

variate_tensor result_view(bool elementwise, const Tensor& result) {
  return elementwise ? View(result).get() : column(result);
}

// The gradient of a result: one number per row, or one per element of `like`.
struct ResultGradient {
  bool elementwise;
  View view;

  ResultGradient(const Tensor& grad, const Tensor& like, int64_t rows)
      : elementwise(!(grad.dim() == 1 && grad.size(0) == rows)), view(elementwise ? View(grad) : View::of_rows(grad)) {
    if (elementwise) check_same(like, grad, "the gradient must have one number per row, or per element");
  }
};

// Gradients by the bits of `wanted`, in the order of a call's inputs; those that are not wanted are empty.
class Gradients {
 public:
  Gradients(const Tensor& like, int64_t wanted) : like_(like), wanted_(wanted) {}

  Tensor make(const OptionalTensor& input, variate_tensor& view) {
    const bool write = (wanted_ >> next_++ & 1) && input;
    const Tensor grad = write ? new_like(*input) : nothing(like_);
    if (write) view = View(grad).get();
    return grad;
  }

 private:
  const Tensor& like_;
  int64_t wanted_;
  int next_ = 0;
};

template <class Args>
Args new_args(const Shape& shape, const Execution& execution) {
  Args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.rows = shape.rows;
  args.cols = shape.cols;
  return args;
}

bool satisfies(Tensor value, int64_t constraint) {
  const Shape shape(value.sizes());
  const Execution execution(value);
  const View view(value);
  int32_t satisfied = 0;
  auto args = new_args<variate_satisfies_args>(shape, execution);
  args.constraint = static_cast<variate_constraint>(constraint);
  args.value = view.get();
  args.satisfied = &satisfied;
  check(variate_satisfies(&args));
  return satisfied != 0;
}

// What both directions of normal_kl read.
struct Normals {
  Shape shape;
  Execution execution;
  View mean, spread, prior_mean, prior_spread;
  Scalar free_bits;

  Normals(const Tensor& mean_, const Tensor& spread_, const OptionalTensor& prior_mean_,
          const OptionalTensor& prior_spread_, const OptionalTensor& free_bits_)
      : shape(mean_.sizes()),
        execution(mean_),
        mean(mean_),
        spread(spread_),
        prior_mean(prior_mean_),
        prior_spread(prior_spread_),
        free_bits(free_bits_, mean_) {
    check_same(mean_, spread_, "spread must have the shape and device of mean");
    if (prior_mean_) check_same(mean_, *prior_mean_, "prior_mean must have the shape and device of mean");
    if (prior_spread_) check_same(mean_, *prior_spread_, "prior_spread must have the shape and device of mean");
  }

  template <class Args>
  Args args(int64_t parametrization) const {
    Args args = new_args<Args>(shape, execution);
    args.parametrization = static_cast<variate_parametrization>(parametrization);
    args.mean = mean.get();
    args.spread = spread.get();
    args.prior_mean = prior_mean.get();
    args.prior_spread = prior_spread.get();
    args.free_bits = free_bits.tensor;
    args.free_bits_value = free_bits.value;
    return args;
  }
};

Tensor normal_kl(Tensor mean, Tensor spread, OptionalTensor prior_mean, OptionalTensor prior_spread,
                 OptionalTensor free_bits, bool elementwise, int64_t parametrization) {
  Normals inputs(mean, spread, prior_mean, prior_spread, free_bits);
  Tensor kl = new_result(elementwise, inputs.shape.rows, mean, spread, prior_mean, prior_spread);
  auto args = inputs.args<variate_normal_kl_args>(parametrization);
  args.elementwise = elementwise;
  args.kl = result_view(elementwise, kl);
  args.execution = inputs.execution.with_workspace(variate_normal_kl_workspace(&args));
  check(variate_normal_kl(&args));
  return kl;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> normal_kl_backward(Tensor grad_kl, Tensor mean, Tensor spread,
                                                              OptionalTensor prior_mean, OptionalTensor prior_spread,
                                                              OptionalTensor free_bits, int64_t wanted,
                                                              int64_t parametrization) {
  const Normals inputs(mean, spread, prior_mean, prior_spread, free_bits);
  const ResultGradient grad(grad_kl, mean, inputs.shape.rows);
  auto args = inputs.args<variate_normal_kl_backward_args>(parametrization);
  args.elementwise = grad.elementwise;
  args.grad_kl = grad.view.get();
  Gradients gradients(mean, wanted);
  Tensor grad_mean = gradients.make(mean, args.grad_mean);
  Tensor grad_spread = gradients.make(spread, args.grad_spread);
  Tensor grad_prior_mean = gradients.make(prior_mean, args.grad_prior_mean);
  Tensor grad_prior_spread = gradients.make(prior_spread, args.grad_prior_spread);
  check(variate_normal_kl_backward(&args));
  return {grad_mean, grad_spread, grad_prior_mean, grad_prior_spread};
}

Tensor bernoulli_kl(Tensor logits, Tensor prior_logits, bool elementwise) {
  check_same(logits, prior_logits, "prior_logits must have the shape and device of logits");
  const Shape shape(logits.sizes());
  Execution execution(logits);
  const View logits_view(logits), prior_view(prior_logits);
  Tensor kl = new_result(elementwise, shape.rows, logits, prior_logits);
  auto args = new_args<variate_bernoulli_kl_args>(shape, execution);
  args.elementwise = elementwise;
  args.logits = logits_view.get();
  args.prior_logits = prior_view.get();
  args.kl = result_view(elementwise, kl);
  args.execution = execution.with_workspace(variate_bernoulli_kl_workspace(&args));
  check(variate_bernoulli_kl(&args));
  return kl;
}

std::tuple<Tensor, Tensor> bernoulli_kl_backward(Tensor grad_kl, Tensor logits, Tensor prior_logits, int64_t wanted) {
  check_same(logits, prior_logits, "prior_logits must have the shape and device of logits");
  const Shape shape(logits.sizes());
  const Execution execution(logits);
  const View logits_view(logits), prior_view(prior_logits);
  const ResultGradient grad(grad_kl, logits, shape.rows);
  auto args = new_args<variate_bernoulli_kl_backward_args>(shape, execution);
  args.elementwise = grad.elementwise;
  args.grad_kl = grad.view.get();
  args.logits = logits_view.get();
  args.prior_logits = prior_view.get();
  Gradients gradients(logits, wanted);
  Tensor grad_logits = gradients.make(logits, args.grad_logits);
  Tensor grad_prior_logits = gradients.make(prior_logits, args.grad_prior_logits);
  check(variate_bernoulli_kl_backward(&args));
  return {grad_logits, grad_prior_logits};
}

Tensor normal_nll(Tensor mean, Tensor spread, Tensor target, bool elementwise, int64_t parametrization) {
  check_same(mean, spread, "spread must have the shape and device of mean");
  check_same(mean, target, "target must have the shape and device of mean");
  const Shape shape(mean.sizes());
  Execution execution(mean);
  const View mean_view(mean), spread_view(spread), target_view(target);
  Tensor nll = new_result(elementwise, shape.rows, mean, spread, target);
  auto args = new_args<variate_normal_nll_args>(shape, execution);
  args.parametrization = static_cast<variate_parametrization>(parametrization);
  args.elementwise = elementwise;
  args.mean = mean_view.get();
  args.spread = spread_view.get();
  args.target = target_view.get();
  args.nll = result_view(elementwise, nll);
  args.execution = execution.with_workspace(variate_normal_nll_workspace(&args));
  check(variate_normal_nll(&args));
  return nll;
}

std::tuple<Tensor, Tensor, Tensor> normal_nll_backward(Tensor grad_nll, Tensor mean, Tensor spread, Tensor target,
                                                       int64_t wanted, int64_t parametrization) {
  check_same(mean, spread, "spread must have the shape and device of mean");
  check_same(mean, target, "target must have the shape and device of mean");
  const Shape shape(mean.sizes());
  const Execution execution(mean);
  const View mean_view(mean), spread_view(spread), target_view(target);
  const ResultGradient grad(grad_nll, mean, shape.rows);
  auto args = new_args<variate_normal_nll_backward_args>(shape, execution);
  args.parametrization = static_cast<variate_parametrization>(parametrization);
  args.elementwise = grad.elementwise;
  args.grad_nll = grad.view.get();
  args.mean = mean_view.get();
  args.spread = spread_view.get();
  args.target = target_view.get();
  Gradients gradients(mean, wanted);
  Tensor grad_mean = gradients.make(mean, args.grad_mean);
  Tensor grad_spread = gradients.make(spread, args.grad_spread);
  Tensor grad_target = gradients.make(target, args.grad_target);
  check(variate_normal_nll_backward(&args));
  return {grad_mean, grad_spread, grad_target};
}

Tensor bernoulli_nll(Tensor logits, Tensor target, bool elementwise) {
  check_same(logits, target, "target must have the shape and device of logits");
  const Shape shape(logits.sizes());
  Execution execution(logits);
  const View logits_view(logits), target_view(target);
  Tensor nll = new_result(elementwise, shape.rows, logits, target);
  auto args = new_args<variate_bernoulli_nll_args>(shape, execution);
  args.elementwise = elementwise;
  args.logits = logits_view.get();
  args.target = target_view.get();
  args.nll = result_view(elementwise, nll);
  args.execution = execution.with_workspace(variate_bernoulli_nll_workspace(&args));
  check(variate_bernoulli_nll(&args));
  return nll;
}

std::tuple<Tensor, Tensor> bernoulli_nll_backward(Tensor grad_nll, Tensor logits, Tensor target, int64_t wanted) {
  check_same(logits, target, "target must have the shape and device of logits");
  const Shape shape(logits.sizes());
  const Execution execution(logits);
  const View logits_view(logits), target_view(target);
  const ResultGradient grad(grad_nll, logits, shape.rows);
  auto args = new_args<variate_bernoulli_nll_backward_args>(shape, execution);
  args.elementwise = grad.elementwise;
  args.grad_nll = grad.view.get();
  args.logits = logits_view.get();
  args.target = target_view.get();
  Gradients gradients(logits, wanted);
  Tensor grad_logits = gradients.make(logits, args.grad_logits);
  Tensor grad_target = gradients.make(target, args.grad_target);
  check(variate_bernoulli_nll_backward(&args));
  return {grad_logits, grad_target};
}

// What every categorical op reads: logits [rows, groups * categories].
struct Groups {
  Shape shape;
  int64_t categories;
  Execution execution;
  View logits;

  explicit Groups(const Tensor& tensor)
      : shape(tensor.sizes()),
        categories(tensor.dim() ? tensor.size(tensor.dim() - 1) : 0),
        execution(tensor),
        logits(tensor) {
    STD_TORCH_CHECK(categories > 0, "logits must have at least one category");
  }

  template <class Args>
  Args args() const {
    Args args = {};
    args.struct_size = sizeof args;
    args.execution = execution.get();
    args.rows = shape.rows;
    args.groups = shape.cols / categories;
    args.categories = categories;
    args.logits = logits.get();
    return args;
  }
};

// One number per group: [rows, groups] from the shape of logits without its last dimension.
View per_group(const Tensor& tensor, const Tensor& logits, const char* message) {
  const auto sizes = tensor.sizes();
  bool same = tensor.dim() + 1 == logits.dim() && tensor.is_cuda() == logits.is_cuda() &&
              tensor.get_device_index() == logits.get_device_index();
  for (std::size_t d = 0; same && d < sizes.size(); ++d) same = sizes[d] == logits.size(d);
  STD_TORCH_CHECK(same, message);
  return logits.dim() == 2 ? View::of_rows(tensor) : View(tensor);
}

std::tuple<Tensor, Tensor> categorical_nll(Tensor logits, Tensor target, bool needs_grad) {
  Groups groups(logits);
  const View target_view = per_group(target, logits, "target must have the shape of logits without its last dimension");
  Tensor nll = new_result(false, groups.shape.rows, logits);
  std::vector<int64_t> sizes(target.sizes().begin(), target.sizes().end());
  const ScalarType wide = is_double(logits) ? ScalarType::Double : ScalarType::Float;
  Tensor log_sum_exp = needs_grad ? new_tensor(sizes, wide, logits) : nothing(nll);
  auto args = groups.args<variate_categorical_nll_args>();
  args.target = target_view.get();
  args.nll = column(nll);
  if (needs_grad) args.log_sum_exp = per_group(log_sum_exp, logits, "log_sum_exp").get();
  args.execution = groups.execution.with_workspace(variate_categorical_nll_workspace(&args));
  check(variate_categorical_nll(&args));
  return {nll, log_sum_exp};
}

Tensor categorical_nll_backward(Tensor grad_nll, Tensor logits, Tensor target, Tensor log_sum_exp) {
  const Groups groups(logits);
  STD_TORCH_CHECK(grad_nll.numel() == groups.shape.rows, "grad_nll must have one number per row");
  const View target_view = per_group(target, logits, "target must have the shape of logits without its last dimension");
  const View log_sum_exp_view = per_group(log_sum_exp, logits, "log_sum_exp must have the shape of target");
  Tensor grad_logits = new_like(logits);
  auto args = groups.args<variate_categorical_nll_backward_args>();
  args.grad_nll = column(grad_nll);
  args.target = target_view.get();
  args.log_sum_exp = log_sum_exp_view.get();
  args.grad_logits = View(grad_logits).get();
  check(variate_categorical_nll_backward(&args));
  return grad_logits;
}

Tensor categorical_kl(Tensor logits, Tensor prior_logits) {
  check_same(logits, prior_logits, "prior_logits must have the shape and device of logits");
  Groups groups(logits);
  const View prior_view(prior_logits);
  Tensor kl = new_result(false, groups.shape.rows, logits, prior_logits);
  auto args = groups.args<variate_categorical_kl_args>();
  args.prior_logits = prior_view.get();
  args.kl = column(kl);
  args.execution = groups.execution.with_workspace(variate_categorical_kl_workspace(&args));
  check(variate_categorical_kl(&args));
  return kl;
}

std::tuple<Tensor, Tensor> categorical_kl_backward(Tensor grad_kl, Tensor logits, Tensor prior_logits, int64_t wanted) {
  check_same(logits, prior_logits, "prior_logits must have the shape and device of logits");
  const Groups groups(logits);
  STD_TORCH_CHECK(grad_kl.numel() == groups.shape.rows, "grad_kl must have one number per row");
  const View prior_view(prior_logits);
  auto args = groups.args<variate_categorical_kl_backward_args>();
  args.grad_kl = column(grad_kl);
  args.prior_logits = prior_view.get();
  Gradients gradients(logits, wanted);
  Tensor grad_logits = gradients.make(logits, args.grad_logits);
  Tensor grad_prior_logits = gradients.make(prior_logits, args.grad_prior_logits);
  check(variate_categorical_kl_backward(&args));
  return {grad_logits, grad_prior_logits};
}

}  // namespace

// `constraint` is variate_constraint. With `elementwise` the result has the shape of the inputs, without the sum over
// each sample. `wanted` has a bit for the gradient of each input, the lowest for the first; `parametrization` is
// variate_parametrization.
STABLE_TORCH_LIBRARY_FRAGMENT(variate, library) {
  library.def("satisfies(Tensor value, int constraint) -> bool");
  library.def(
      "normal_kl(Tensor mean, Tensor spread, Tensor? prior_mean, Tensor? prior_spread, Tensor? free_bits, "
      "bool elementwise=False, int parametrization=0) -> Tensor");
  library.def(
      "normal_kl_backward(Tensor grad_kl, Tensor mean, Tensor spread, Tensor? prior_mean, Tensor? prior_spread, "
      "Tensor? free_bits, int wanted, int parametrization=0) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def("bernoulli_kl(Tensor logits, Tensor prior_logits, bool elementwise=False) -> Tensor");
  library.def(
      "bernoulli_kl_backward(Tensor grad_kl, Tensor logits, Tensor prior_logits, int wanted) -> (Tensor, Tensor)");
  library.def(
      "normal_nll(Tensor mean, Tensor spread, Tensor target, bool elementwise=False, int parametrization=0) -> Tensor");
  library.def(
      "normal_nll_backward(Tensor grad_nll, Tensor mean, Tensor spread, Tensor target, int wanted, "
      "int parametrization=0) -> (Tensor, Tensor, Tensor)");
  library.def("bernoulli_nll(Tensor logits, Tensor target, bool elementwise=False) -> Tensor");
  library.def("bernoulli_nll_backward(Tensor grad_nll, Tensor logits, Tensor target, int wanted) -> (Tensor, Tensor)");
  library.def("categorical_nll(Tensor logits, Tensor target, bool needs_grad) -> (Tensor, Tensor)");
  library.def("categorical_nll_backward(Tensor grad_nll, Tensor logits, Tensor target, Tensor log_sum_exp) -> Tensor");
  library.def("categorical_kl(Tensor logits, Tensor prior_logits) -> Tensor");
  library.def(
      "categorical_kl_backward(Tensor grad_kl, Tensor logits, Tensor prior_logits, int wanted) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(variate, CPU, library) {
  library.impl("satisfies", TORCH_BOX(&satisfies));
  library.impl("normal_kl", TORCH_BOX(&normal_kl));
  library.impl("normal_kl_backward", TORCH_BOX(&normal_kl_backward));
  library.impl("bernoulli_kl", TORCH_BOX(&bernoulli_kl));
  library.impl("bernoulli_kl_backward", TORCH_BOX(&bernoulli_kl_backward));
  library.impl("normal_nll", TORCH_BOX(&normal_nll));
  library.impl("normal_nll_backward", TORCH_BOX(&normal_nll_backward));
  library.impl("bernoulli_nll", TORCH_BOX(&bernoulli_nll));
  library.impl("bernoulli_nll_backward", TORCH_BOX(&bernoulli_nll_backward));
  library.impl("categorical_nll", TORCH_BOX(&categorical_nll));
  library.impl("categorical_nll_backward", TORCH_BOX(&categorical_nll_backward));
  library.impl("categorical_kl", TORCH_BOX(&categorical_kl));
  library.impl("categorical_kl_backward", TORCH_BOX(&categorical_kl_backward));
}
#if defined(VARIATE_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(variate, CUDA, library) {
  library.impl("normal_kl", TORCH_BOX(&normal_kl));
  library.impl("normal_kl_backward", TORCH_BOX(&normal_kl_backward));
  library.impl("bernoulli_nll", TORCH_BOX(&bernoulli_nll));
  library.impl("bernoulli_nll_backward", TORCH_BOX(&bernoulli_nll_backward));
}
#endif

}  // namespace variate::torch_ops
