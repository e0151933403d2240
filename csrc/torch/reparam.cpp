#include "ops.h"

namespace variate::torch_ops {

namespace {

bool is_double(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Double; }
bool is_double(const OptionalTensor& tensor) { return tensor && is_double(*tensor); }

// The dtype that torch promotes two floating ones to.
ScalarType promote(const Tensor& a, const Tensor& b) {
  const ScalarType x = a.scalar_type(), y = b.scalar_type();
  if (x == y) return x;
  return x == ScalarType::Double || y == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// What both directions read: the inputs as views, and the struct's fields they share.
class Inputs {
 public:
  Inputs(const Tensor& mean, const Tensor& log_var, const OptionalTensor& prior_mean,
         const OptionalTensor& prior_log_var, const OptionalTensor& free_bits, const Tensor& key, int64_t first_sample)
      : shape(mean.sizes()),
        execution(mean),
        noise_(key, shape.rows, first_sample, &mean),
        mean_(mean),
        log_var_(log_var),
        prior_mean_(prior_mean),
        prior_log_var_(prior_log_var) {
    check_same(mean, log_var, "log_var must have the shape and device of mean");
    if (prior_mean) check_same(mean, *prior_mean, "prior_mean must have the shape and device of mean");
    if (prior_log_var) check_same(mean, *prior_log_var, "prior_log_var must have the shape and device of mean");
    if (!free_bits) return;
    STD_TORCH_CHECK(free_bits->numel() == 1, "free_bits must be one number");
    free_bits_ = column(*free_bits);
    if (mean.is_cuda() && !free_bits->is_cuda()) {  // a number of the host travels with the launch
      STD_TORCH_CHECK(free_bits_.dtype == VARIATE_FLOAT32 || free_bits_.dtype == VARIATE_FLOAT64,
                      "free_bits must be float32 or float64");
      free_bits_value_ = free_bits_.dtype == VARIATE_FLOAT64 ? *static_cast<const double*>(free_bits_.data)
                                                             : *static_cast<const float*>(free_bits_.data);
      free_bits_.data = nullptr;
    }
  }

  template <class Args>
  void fill(Args& args) const {
    args.struct_size = sizeof args;
    args.execution = execution.get();
    args.noise = noise_.get();
    args.rows = shape.rows;
    args.cols = shape.cols;
    args.mean = mean_.get();
    args.log_var = log_var_.get();
    args.prior_mean = prior_mean_.get();
    args.prior_log_var = prior_log_var_.get();
    args.free_bits = free_bits_;
    args.free_bits_value = free_bits_value_;
  }

  Shape shape;
  Execution execution;

 private:
  Noise noise_;
  View mean_, log_var_, prior_mean_, prior_log_var_;
  variate_tensor free_bits_ = {nullptr, VARIATE_FLOAT32, 0, 0};
  double free_bits_value_ = 0.0;
};

Tensor normal_rsample(Tensor mean, Tensor log_var, Tensor key, int64_t first_sample) {
  const Inputs inputs(mean, log_var, {}, {}, {}, key, first_sample);
  Tensor z = new_tensor(mean.sizes(), promote(mean, log_var), mean);
  variate_normal_rsample_kl_args args = {};
  inputs.fill(args);
  args.z = View(z).get();
  check(variate_normal_rsample_kl(&args));
  return z;
}

std::tuple<Tensor, Tensor> normal_rsample_kl(Tensor mean, Tensor log_var, OptionalTensor prior_mean,
                                             OptionalTensor prior_log_var, OptionalTensor free_bits, Tensor key,
                                             int64_t first_sample) {
  Inputs inputs(mean, log_var, prior_mean, prior_log_var, free_bits, key, first_sample);
  const bool wide = is_double(mean) || is_double(log_var) || is_double(prior_mean) || is_double(prior_log_var);
  Tensor z = new_tensor(mean.sizes(), promote(mean, log_var), mean);
  const int64_t rows[] = {inputs.shape.rows};
  Tensor kl = new_tensor(torch::headeronly::IntHeaderOnlyArrayRef(rows, 1),
                         wide ? ScalarType::Double : ScalarType::Float, mean);
  variate_normal_rsample_kl_args args = {};
  inputs.fill(args);
  args.z = View(z).get();
  args.kl = column(kl);
  args.execution = inputs.execution.with_workspace(variate_normal_rsample_kl_workspace(&args));
  check(variate_normal_rsample_kl(&args));
  return {z, kl};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> normal_rsample_kl_backward(
    OptionalTensor grad_z, OptionalTensor grad_kl, Tensor mean, Tensor log_var, OptionalTensor prior_mean,
    OptionalTensor prior_log_var, OptionalTensor free_bits, Tensor key, int64_t first_sample, bool prior_needs_grad) {
  const Inputs inputs(mean, log_var, prior_mean, prior_log_var, free_bits, key, first_sample);
  if (grad_z) check_same(mean, *grad_z, "grad_z must have the shape and device of mean");
  STD_TORCH_CHECK(!grad_kl || grad_kl->numel() == inputs.shape.rows, "grad_kl must have one number per row");
  const View grad_z_view(grad_z);
  variate_normal_rsample_kl_backward_args args = {};
  inputs.fill(args);
  args.grad_z = grad_z_view.get();
  args.grad_kl = column(grad_kl);
  Tensor grad_mean = new_like(mean), grad_log_var = new_like(log_var);
  args.grad_mean = View(grad_mean).get();
  args.grad_log_var = View(grad_log_var).get();
  Tensor grad_prior_mean = nothing(mean), grad_prior_log_var = nothing(mean);
  if (prior_needs_grad && prior_mean) {
    grad_prior_mean = new_like(*prior_mean);
    args.grad_prior_mean = View(grad_prior_mean).get();
  }
  if (prior_needs_grad && prior_log_var) {
    grad_prior_log_var = new_like(*prior_log_var);
    args.grad_prior_log_var = View(grad_prior_log_var).get();
  }
  check(variate_normal_rsample_kl_backward(&args));
  return {grad_mean, grad_log_var, grad_prior_mean, grad_prior_log_var};
}

// What both directions of location_scale_rsample read. With samples = 0 there is one, and z has no dimension for it.
class Samples {
 public:
  Samples(const Tensor& loc, const Tensor& spread, const Tensor& key, int64_t first_sample, int64_t samples,
          bool antithetic, int64_t base, int64_t parametrization)
      : shape_(loc.sizes()),
        execution_(loc),
        noise_(key, shape_.rows, first_sample, &loc),
        spread_(spread),
        samples_(samples),
        antithetic_(antithetic),
        base_(static_cast<int>(base)),
        parametrization_(static_cast<int>(parametrization)) {
    check_same(loc, spread, "scale must have the shape and device of loc");
    STD_TORCH_CHECK(samples >= 0, "samples must be at least 0");
    STD_TORCH_CHECK(base >= 0 && base <= 3, "base must lie in [0, 3]");
    STD_TORCH_CHECK(parametrization >= 0 && parametrization <= 2, "parametrization must lie in [0, 2]");
    const auto sizes = loc.sizes();
    if (samples > 0) z_sizes_.push_back(samples);
    z_sizes_.insert(z_sizes_.end(), sizes.begin(), sizes.end());
  }

  template <class Args>
  void fill(Args& args) const {
    args.struct_size = sizeof args;
    args.execution = execution_.get();
    args.noise = noise_.get();
    args.rows = shape_.rows;
    args.cols = shape_.cols;
    args.samples = samples_ ? samples_ : 1;
    args.antithetic = antithetic_;
    args.base = static_cast<variate_base>(base_);
    args.parametrization = static_cast<variate_parametrization>(parametrization_);
    args.spread = spread_.get();
  }

  const std::vector<int64_t>& z_sizes() const { return z_sizes_; }
  View view(const Tensor& z) const { return View(z, samples_ > 0); }

 private:
  Shape shape_;
  Execution execution_;
  Noise noise_;
  View spread_;
  int64_t samples_;
  bool antithetic_;
  int base_, parametrization_;
  std::vector<int64_t> z_sizes_;
};

Tensor location_scale_rsample(Tensor loc, Tensor scale, Tensor key, int64_t first_sample, int64_t samples,
                              bool antithetic, int64_t base, int64_t parametrization) {
  const Samples inputs(loc, scale, key, first_sample, samples, antithetic, base, parametrization);
  const View loc_view(loc);
  Tensor z = new_tensor(inputs.z_sizes(), promote(loc, scale), loc);
  const View z_view = inputs.view(z);
  variate_location_scale_rsample_args args = {};
  inputs.fill(args);
  args.loc = loc_view.get();
  args.z = z_view.get();
  args.z_sample_stride = z_view.leading_stride();
  check(variate_location_scale_rsample(&args));
  return z;
}

std::tuple<Tensor, Tensor> location_scale_rsample_backward(Tensor grad_z, Tensor loc, Tensor scale, Tensor key,
                                                           int64_t first_sample, int64_t samples, bool antithetic,
                                                           int64_t base, int64_t parametrization) {
  const Samples inputs(loc, scale, key, first_sample, samples, antithetic, base, parametrization);
  STD_TORCH_CHECK(grad_z.sizes() == inputs.z_sizes() && grad_z.is_cuda() == loc.is_cuda(),
                  "grad_z must have the shape and device of z");
  const View grad_z_view = inputs.view(grad_z);
  Tensor grad_loc = new_like(loc), grad_scale = new_like(scale);
  variate_location_scale_rsample_backward_args args = {};
  inputs.fill(args);
  args.grad_z = grad_z_view.get();
  args.grad_z_sample_stride = grad_z_view.leading_stride();
  args.grad_loc = View(grad_loc).get();
  args.grad_spread = View(grad_scale).get();
  check(variate_location_scale_rsample_backward(&args));
  return {grad_loc, grad_scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(variate, library) {
  library.def("normal_rsample(Tensor mean, Tensor log_var, Tensor key, SymInt first_sample) -> Tensor");
  library.def(
      "normal_rsample_kl(Tensor mean, Tensor log_var, Tensor? prior_mean, Tensor? prior_log_var, Tensor? free_bits, "
      "Tensor key, SymInt first_sample) -> (Tensor, Tensor)");
  library.def(
      "normal_rsample_kl_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mean, Tensor log_var, Tensor? prior_mean, "
      "Tensor? prior_log_var, Tensor? free_bits, Tensor key, SymInt first_sample, bool prior_needs_grad) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "location_scale_rsample(Tensor loc, Tensor scale, Tensor key, SymInt first_sample, SymInt samples, "
      "bool antithetic, int base, int parametrization) -> Tensor");
  library.def(
      "location_scale_rsample_backward(Tensor grad_z, Tensor loc, Tensor scale, Tensor key, SymInt first_sample, "
      "SymInt samples, bool antithetic, int base, int parametrization) -> (Tensor, Tensor)");
}

template <class Library>
static void implement(Library& library) {
  library.impl("normal_rsample", TORCH_BOX(&normal_rsample));
  library.impl("normal_rsample_kl", TORCH_BOX(&normal_rsample_kl));
  library.impl("normal_rsample_kl_backward", TORCH_BOX(&normal_rsample_kl_backward));
}

STABLE_TORCH_LIBRARY_IMPL(variate, CPU, library) {
  implement(library);
  library.impl("location_scale_rsample", TORCH_BOX(&location_scale_rsample));
  library.impl("location_scale_rsample_backward", TORCH_BOX(&location_scale_rsample_backward));
}
#if defined(VARIATE_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(variate, CUDA, library) { implement(library); }
#endif

}  // namespace variate::torch_ops
