#include "ops.h"

namespace variate::torch_ops {

namespace {

// A temperature that is left out is 1.
template <class Args>
void set_temperature(Args& args, const OptionalTensor& temperature, const Tensor& like) {
  const Scalar scalar(temperature, like);
  args.temperature = scalar.tensor;
  args.temperature_value = temperature ? scalar.value : 1.0;
}

// Categories are the last dimension.
template <class Args>
void set_groups(Args& args, const Tensor& logits, const Shape& shape) {
  STD_TORCH_CHECK(logits.dim() >= 1, "logits must have at least one dimension");
  args.rows = shape.rows;
  args.categories = logits.size(logits.dim() - 1);
  args.groups = args.categories > 0 ? shape.cols / args.categories : 0;
}

Tensor gumbel_softmax(Tensor logits, OptionalTensor temperature, Tensor key, int64_t first_sample, bool hard) {
  const Shape shape(logits.sizes());
  const Noise noise(key, shape.rows, first_sample, &logits);
  const Execution execution(logits);
  const View input(logits);
  Tensor y = new_like(logits);
  variate_gumbel_softmax_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.noise = noise.get();
  set_groups(args, logits, shape);
  set_temperature(args, temperature, logits);
  args.hard = hard;
  args.logits = input.get();
  args.y = View(y).get();
  check(variate_gumbel_softmax(&args));
  return y;
}

// What a backward pass reads: the soft sample, or the logits, with a key if they had noise.
const Tensor& source_of(const Tensor& grad, const OptionalTensor& sample, const OptionalTensor& logits) {
  STD_TORCH_CHECK(sample.has_value() != logits.has_value(), "either the sample or the logits must be given");
  const Tensor& source = sample ? *sample : *logits;
  check_same(source, grad, "the gradient must have the shape and device of the sample");
  return source;
}

template <class Args>
void set_noise(Args& args, const OptionalTensor& key, const Shape& shape, int64_t first_sample, const Tensor& like,
               std::optional<Noise>& noise) {
  if (!key) return;
  noise.emplace(*key, shape.rows, first_sample, &like);
  args.noise = noise->get();
}

Tensor gumbel_softmax_backward(Tensor grad_y, OptionalTensor y, OptionalTensor logits, OptionalTensor temperature,
                               OptionalTensor key, int64_t first_sample) {
  const Tensor& source = source_of(grad_y, y, logits);
  const Shape shape(source.sizes());
  const Execution execution(source);
  const View grad_view(grad_y), y_view(y), logits_view(logits);
  std::optional<Noise> noise;
  Tensor grad_logits = new_like(source);
  variate_gumbel_softmax_backward_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  set_noise(args, key, shape, first_sample, source, noise);
  set_groups(args, source, shape);
  set_temperature(args, temperature, source);
  args.grad_y = grad_view.get();
  args.y = y_view.get();
  args.logits = logits_view.get();
  args.grad_logits = View(grad_logits).get();
  check(variate_gumbel_softmax_backward(&args));
  return grad_logits;
}

Tensor relaxed_bernoulli_rsample(Tensor logits, OptionalTensor temperature, Tensor key, int64_t first_sample,
                                 bool hard) {
  const Shape shape(logits.sizes());
  const Noise noise(key, shape.rows, first_sample, &logits);
  const Execution execution(logits);
  const View input(logits);
  Tensor z = new_like(logits);
  variate_relaxed_bernoulli_rsample_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.noise = noise.get();
  args.rows = shape.rows;
  args.cols = shape.cols;
  set_temperature(args, temperature, logits);
  args.hard = hard;
  args.logits = input.get();
  args.z = View(z).get();
  check(variate_relaxed_bernoulli_rsample(&args));
  return z;
}

Tensor relaxed_bernoulli_rsample_backward(Tensor grad_z, OptionalTensor z, OptionalTensor logits,
                                          OptionalTensor temperature, OptionalTensor key, int64_t first_sample) {
  const Tensor& source = source_of(grad_z, z, logits);
  const Shape shape(source.sizes());
  const Execution execution(source);
  const View grad_view(grad_z), z_view(z), logits_view(logits);
  std::optional<Noise> noise;
  Tensor grad_logits = new_like(source);
  variate_relaxed_bernoulli_rsample_backward_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  set_noise(args, key, shape, first_sample, source, noise);
  args.rows = shape.rows;
  args.cols = shape.cols;
  set_temperature(args, temperature, source);
  args.grad_z = grad_view.get();
  args.z = z_view.get();
  args.logits = logits_view.get();
  args.grad_logits = View(grad_logits).get();
  check(variate_relaxed_bernoulli_rsample_backward(&args));
  return grad_logits;
}

Tensor bernoulli_straight_through(Tensor logits, Tensor key, int64_t first_sample) {
  const Shape shape(logits.sizes());
  const Noise noise(key, shape.rows, first_sample, &logits);
  const Execution execution(logits);
  const View input(logits);
  Tensor out = new_like(logits);
  variate_bernoulli_straight_through_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.noise = noise.get();
  args.rows = shape.rows;
  args.cols = shape.cols;
  args.logits = input.get();
  args.out = View(out).get();
  check(variate_bernoulli_straight_through(&args));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(variate, library) {
  library.def(
      "gumbel_softmax(Tensor logits, Tensor? temperature, Tensor key, SymInt first_sample, bool hard) -> Tensor");
  library.def(
      "gumbel_softmax_backward(Tensor grad_y, Tensor? y, Tensor? logits, Tensor? temperature, Tensor? key, "
      "SymInt first_sample) -> Tensor");
  library.def(
      "relaxed_bernoulli_rsample(Tensor logits, Tensor? temperature, Tensor key, SymInt first_sample, bool hard) "
      "-> Tensor");
  library.def(
      "relaxed_bernoulli_rsample_backward(Tensor grad_z, Tensor? z, Tensor? logits, Tensor? temperature, Tensor? key, "
      "SymInt first_sample) -> Tensor");
  library.def("bernoulli_straight_through(Tensor logits, Tensor key, SymInt first_sample) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(variate, CPU, library) {
  library.impl("gumbel_softmax", TORCH_BOX(&gumbel_softmax));
  library.impl("gumbel_softmax_backward", TORCH_BOX(&gumbel_softmax_backward));
  library.impl("relaxed_bernoulli_rsample", TORCH_BOX(&relaxed_bernoulli_rsample));
  library.impl("relaxed_bernoulli_rsample_backward", TORCH_BOX(&relaxed_bernoulli_rsample_backward));
  library.impl("bernoulli_straight_through", TORCH_BOX(&bernoulli_straight_through));
}

}  // namespace variate::torch_ops
