#include "ops.h"

namespace variate::torch_ops {

namespace {

Tensor bernoulli_nll(Tensor logits, Tensor target) {
  check_same(logits, target, "target must have the shape and device of logits");
  const Shape shape(logits.sizes());
  Execution execution(logits);
  const View logits_view(logits), target_view(target);
  const bool wide = logits.scalar_type() == ScalarType::Double || target.scalar_type() == ScalarType::Double;
  const int64_t rows[] = {shape.rows};
  Tensor nll = new_tensor(torch::headeronly::IntHeaderOnlyArrayRef(rows, 1),
                          wide ? ScalarType::Double : ScalarType::Float, logits);
  variate_bernoulli_nll_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.rows = shape.rows;
  args.cols = shape.cols;
  args.logits = logits_view.get();
  args.target = target_view.get();
  args.nll = column(nll);
  args.execution = execution.with_workspace(variate_bernoulli_nll_workspace(&args));
  check(variate_bernoulli_nll(&args));
  return nll;
}

std::tuple<Tensor, Tensor> bernoulli_nll_backward(Tensor grad_nll, Tensor logits, Tensor target,
                                                  bool target_needs_grad) {
  check_same(logits, target, "target must have the shape and device of logits");
  const Shape shape(logits.sizes());
  STD_TORCH_CHECK(grad_nll.numel() == shape.rows, "grad_nll must have one number per row");
  const Execution execution(logits);
  const View logits_view(logits), target_view(target);
  Tensor grad_logits = new_like(logits);
  Tensor grad_target = target_needs_grad ? new_like(target) : nothing(logits);
  variate_bernoulli_nll_backward_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.rows = shape.rows;
  args.cols = shape.cols;
  args.grad_nll = column(grad_nll);
  args.logits = logits_view.get();
  args.target = target_view.get();
  args.grad_logits = View(grad_logits).get();
  if (target_needs_grad) args.grad_target = View(grad_target).get();
  check(variate_bernoulli_nll_backward(&args));
  return {grad_logits, grad_target};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(variate, library) {
  library.def("bernoulli_nll(Tensor logits, Tensor target) -> Tensor");
  library.def(
      "bernoulli_nll_backward(Tensor grad_nll, Tensor logits, Tensor target, bool target_needs_grad) "
      "-> (Tensor, Tensor)");
}

template <class Library>
static void implement(Library& library) {
  library.impl("bernoulli_nll", TORCH_BOX(&bernoulli_nll));
  library.impl("bernoulli_nll_backward", TORCH_BOX(&bernoulli_nll_backward));
}

STABLE_TORCH_LIBRARY_IMPL(variate, CPU, library) { implement(library); }
#if defined(VARIATE_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(variate, CUDA, library) { implement(library); }
#endif

}  // namespace variate::torch_ops
