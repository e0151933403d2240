#include "ops.h"

namespace variate::torch_ops {

namespace {

bool is_double(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::Double; }

// One number per sample: float64 where an input is, else float32.
template <class... Tensors>
Tensor new_sums(int64_t rows, const Tensor& like, const Tensors&... tensors) {
  return new_tensor(torch::headeronly::IntHeaderOnlyArrayRef(&rows, 1),
                    (is_double(tensors) || ...) ? ScalarType::Double : ScalarType::Float, like);
}

Tensor discretized_logistic_nll(Tensor mean, Tensor log_scale, Tensor target, int64_t bits, int64_t edges) {
  check_same(mean, log_scale, "log_scale must have the shape and device of mean");
  check_same(mean, target, "target must have the shape and device of mean");
  const Shape shape(mean.sizes());
  Execution execution(mean);
  const View mean_view(mean), log_scale_view(log_scale), target_view(target);
  Tensor nll = new_sums(shape.rows, mean, mean, log_scale, target);
  variate_discretized_logistic_nll_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.rows = shape.rows;
  args.cols = shape.cols;
  args.bits = static_cast<int32_t>(bits);
  args.edges = static_cast<variate_edges>(edges);
  args.mean = mean_view.get();
  args.log_scale = log_scale_view.get();
  args.target = target_view.get();
  args.nll = column(nll);
  args.execution = execution.with_workspace(variate_discretized_logistic_nll_workspace(&args));
  check(variate_discretized_logistic_nll(&args));
  return nll;
}

std::tuple<Tensor, Tensor> discretized_logistic_nll_backward(Tensor grad_nll, Tensor mean, Tensor log_scale,
                                                             Tensor target, int64_t bits, int64_t edges) {
  check_same(mean, log_scale, "log_scale must have the shape and device of mean");
  check_same(mean, target, "target must have the shape and device of mean");
  const Shape shape(mean.sizes());
  STD_TORCH_CHECK(grad_nll.numel() == shape.rows, "grad_nll must have one number per row");
  const Execution execution(mean);
  const View mean_view(mean), log_scale_view(log_scale), target_view(target);
  Tensor grad_mean = new_like(mean), grad_log_scale = new_like(log_scale);
  variate_discretized_logistic_nll_backward_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.rows = shape.rows;
  args.cols = shape.cols;
  args.bits = static_cast<int32_t>(bits);
  args.edges = static_cast<variate_edges>(edges);
  args.grad_nll = column(grad_nll);
  args.mean = mean_view.get();
  args.log_scale = log_scale_view.get();
  args.target = target_view.get();
  args.grad_mean = View(grad_mean).get();
  args.grad_log_scale = View(grad_log_scale).get();
  check(variate_discretized_logistic_nll_backward(&args));
  return {grad_mean, grad_log_scale};
}

// An image tensor as [batch, pixels, channels]: in place where height and width are one stride, else copied. Keeps the
// copy alive.
class ImageView {
 public:
  ImageView(const Tensor& tensor, bool channels_last) : tensor_(tensor) {
    STD_TORCH_CHECK(tensor.dim() == 4, "images must have four dimensions");
    const int channel = channels_last ? 3 : 1, row = channels_last ? 1 : 2;
    if (!merges(row)) tensor_ = torch::stable::contiguous(tensor);
    const int inner = tensor_.size(row + 1) > 1 ? row + 1 : row;
    batch = tensor_.size(0);
    pixels = tensor_.size(row) * tensor_.size(row + 1);
    channels = tensor_.size(channel);
    view_ = {tensor_.mutable_data_ptr(), dtype_of(tensor_.scalar_type()), tensor_.stride(0), tensor_.stride(inner),
             tensor_.stride(channel)};
  }

  variate_image get() const { return view_; }

  int64_t batch, pixels, channels;

 private:
  bool merges(int row) const {
    const int64_t width = tensor_.size(row + 1);
    return tensor_.size(row) <= 1 || width <= 1 || tensor_.stride(row) == width * tensor_.stride(row + 1);
  }

  Tensor tensor_;
  variate_image view_;
};

// A new tensor in the shape, dtype and memory format, contiguous or channels_last, of an image tensor.
Tensor new_image_like(const Tensor& like) {
  if (like.is_contiguous()) return new_like(like);
  const int64_t sizes[] = {like.size(0), like.size(1), like.size(2), like.size(3)};
  int64_t strides[4];
  int64_t step = 1;
  for (const int d : {1, 3, 2, 0}) {
    if (sizes[d] != 1 && like.stride(d) != step) return new_like(like);
    strides[d] = step;
    step *= sizes[d];
  }
  return new_strided(sizes, strides, 4, like.scalar_type(), like);
}

int64_t colours(int64_t params, int64_t mixtures) {
  STD_TORCH_CHECK(mixtures >= 1 && (params == 3 * mixtures || params == 10 * mixtures),
                  "params must have 10 channels per mixture for three colours, or 3 for one");
  return params == 10 * mixtures ? 3 : 1;
}

// What both directions read: the images as views, and the struct's fields they share.
class MixtureInputs {
 public:
  MixtureInputs(const Tensor& params, const Tensor& target, int64_t mixtures, int64_t bits, int64_t edges,
                bool channels_last)
      : execution(params),
        params_(params, channels_last),
        target_(target, channels_last),
        channels_(colours(params_.channels, mixtures)),
        mixtures_(mixtures),
        bits_(bits),
        edges_(edges) {
    STD_TORCH_CHECK(params_.batch == target_.batch && params_.pixels == target_.pixels && target_.channels == channels_,
                    "target must have the batch, height, width and colours that params are for");
    STD_TORCH_CHECK(params.is_cuda() == target.is_cuda() && params.get_device_index() == target.get_device_index(),
                    "target must be on the device of params");
  }

  template <class Args>
  void fill(Args& args) const {
    args.struct_size = sizeof args;
    args.execution = execution.get();
    args.batch = params_.batch;
    args.pixels = params_.pixels;
    args.channels = static_cast<int32_t>(channels_);
    args.mixtures = static_cast<int32_t>(mixtures_);
    args.bits = static_cast<int32_t>(bits_);
    args.edges = static_cast<variate_edges>(edges_);
    args.params = params_.get();
    args.target = target_.get();
  }

  Execution execution;

 private:
  ImageView params_, target_;
  int64_t channels_, mixtures_, bits_, edges_;
};

Tensor discretized_logistic_mixture_nll(Tensor params, Tensor target, int64_t mixtures, int64_t bits, int64_t edges,
                                        bool channels_last) {
  MixtureInputs inputs(params, target, mixtures, bits, edges, channels_last);
  Tensor nll = new_sums(params.size(0), params, params, target);
  variate_discretized_logistic_mixture_nll_args args = {};
  inputs.fill(args);
  args.nll = column(nll);
  args.execution = inputs.execution.with_workspace(variate_discretized_logistic_mixture_nll_workspace(&args));
  check(variate_discretized_logistic_mixture_nll(&args));
  return nll;
}

Tensor discretized_logistic_mixture_nll_backward(Tensor grad_nll, Tensor params, Tensor target, int64_t mixtures,
                                                 int64_t bits, int64_t edges, bool channels_last) {
  MixtureInputs inputs(params, target, mixtures, bits, edges, channels_last);
  STD_TORCH_CHECK(grad_nll.numel() == params.size(0), "grad_nll must have one number per sample");
  Tensor grad_params = new_image_like(params);
  variate_discretized_logistic_mixture_nll_backward_args args = {};
  inputs.fill(args);
  args.grad_nll = column(grad_nll);
  args.grad_params = ImageView(grad_params, channels_last).get();
  args.execution = inputs.execution.with_workspace(variate_discretized_logistic_mixture_nll_backward_workspace(&args));
  check(variate_discretized_logistic_mixture_nll_backward(&args));
  return grad_params;
}

Tensor discretized_logistic_mixture_sample(Tensor params, int64_t mixtures, int64_t bits, bool channels_last,
                                           Tensor key, int64_t first_sample) {
  const ImageView view(params, channels_last);
  const Execution execution(params);
  const Noise noise(key, view.batch, first_sample, &params);
  const int64_t channels = colours(view.channels, mixtures);
  int64_t sizes[] = {params.size(0), params.size(1), params.size(2), params.size(3)};
  sizes[channels_last ? 3 : 1] = channels;
  Tensor sample = new_tensor(torch::headeronly::IntHeaderOnlyArrayRef(sizes, 4), ScalarType::Byte, params);
  variate_discretized_logistic_mixture_sample_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.noise = noise.get();
  args.batch = view.batch;
  args.pixels = view.pixels;
  args.channels = static_cast<int32_t>(channels);
  args.mixtures = static_cast<int32_t>(mixtures);
  args.bits = static_cast<int32_t>(bits);
  args.params = view.get();
  args.sample = ImageView(sample, channels_last).get();
  check(variate_discretized_logistic_mixture_sample(&args));
  return sample;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(variate, library) {
  library.def("discretized_logistic_nll(Tensor mean, Tensor log_scale, Tensor target, int bits, int edges) -> Tensor");
  library.def(
      "discretized_logistic_nll_backward(Tensor grad_nll, Tensor mean, Tensor log_scale, Tensor target, int bits, "
      "int edges) -> (Tensor, Tensor)");
  library.def(
      "discretized_logistic_mixture_nll(Tensor params, Tensor target, int mixtures, int bits, int edges, "
      "bool channels_last) -> Tensor");
  library.def(
      "discretized_logistic_mixture_nll_backward(Tensor grad_nll, Tensor params, Tensor target, int mixtures, "
      "int bits, int edges, bool channels_last) -> Tensor");
  library.def(
      "discretized_logistic_mixture_sample(Tensor params, int mixtures, int bits, bool channels_last, Tensor key, "
      "SymInt first_sample) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(variate, CPU, library) {
  library.impl("discretized_logistic_nll", TORCH_BOX(&discretized_logistic_nll));
  library.impl("discretized_logistic_nll_backward", TORCH_BOX(&discretized_logistic_nll_backward));
  library.impl("discretized_logistic_mixture_nll", TORCH_BOX(&discretized_logistic_mixture_nll));
  library.impl("discretized_logistic_mixture_nll_backward", TORCH_BOX(&discretized_logistic_mixture_nll_backward));
  library.impl("discretized_logistic_mixture_sample", TORCH_BOX(&discretized_logistic_mixture_sample));
}
#if defined(VARIATE_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(variate, CUDA, library) {
  library.impl("discretized_logistic_mixture_nll", TORCH_BOX(&discretized_logistic_mixture_nll));
  library.impl("discretized_logistic_mixture_nll_backward", TORCH_BOX(&discretized_logistic_mixture_nll_backward));
}
#endif

}  // namespace variate::torch_ops
