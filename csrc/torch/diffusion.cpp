#include "ops.h"

namespace variate::torch_ops {

namespace {

// The levels of a call: row by row of a table, by a timestep or one after the other.
struct Levels {
  Tensor table;
  int64_t tokens = 1;

  Levels(const Tensor& levels, const OptionalTensor& timestep, int64_t rows) : table(levels) {
    STD_TORCH_CHECK(levels.dim() == 2 && levels.size(1) == 2, "levels must have shape [T, 2]");
    if (timestep) {
      STD_TORCH_CHECK(timestep->scalar_type() == ScalarType::Long, "timestep must be int64");
      STD_TORCH_CHECK((timestep->dim() == 1 || timestep->dim() == 2) && timestep->size(0) == rows,
                      "timestep must have one number, or one row, per sample");
      STD_TORCH_CHECK(timestep->is_cuda() == levels.is_cuda(), "timestep must be on the device of levels");
      if (timestep->dim() == 2) tokens = timestep->size(1);
    } else {
      STD_TORCH_CHECK(rows == 0 || levels.size(0) % rows == 0, "levels must have as many rows as there are samples");
      if (rows > 0) tokens = levels.size(0) / rows;
    }
  }

  variate_tensor view() const {
    return {table.mutable_data_ptr(), dtype_of(table.scalar_type()), table.stride(0), table.stride(1)};
  }
};

variate_tensor timestep_view(const OptionalTensor& timestep) {
  if (!timestep) return {nullptr, VARIATE_INT64, 0, 0};
  return {timestep->mutable_data_ptr(), VARIATE_INT64, timestep->stride(0),
          timestep->dim() == 2 ? timestep->stride(1) : 0};
}

int64_t channels_of(const Tensor& x) { return x.dim() > 1 ? x.size(1) : x.numel(); }

void check_mask(const Tensor& like, const OptionalTensor& mask) {
  if (!mask) return;
  check_same(like, *mask, "mask must have the shape and device of the data");
  STD_TORCH_CHECK(dtype_of(mask->scalar_type()) == VARIATE_UINT8, "mask must be bool or uint8");
}

std::tuple<Tensor, Tensor> noise_and_target(Tensor x0, OptionalTensor timestep, Tensor levels, int64_t prediction,
                                            double sigma_data, double offset_noise, OptionalTensor noise,
                                            OptionalTensor mask, OptionalTensor key, int64_t first_sample) {
  const Shape shape(x0.sizes());
  const Execution execution(x0);
  const Levels table(levels, timestep, shape.rows);
  STD_TORCH_CHECK(levels.is_cuda() == x0.is_cuda(), "levels must be on the device of x0");
  if (noise) check_same(x0, *noise, "noise must have the shape and device of x0");
  check_mask(x0, mask);
  std::optional<Noise> source;
  if (key) source.emplace(*key, shape.rows, first_sample, &x0);
  const View x0_view(x0), noise_view(noise), mask_view(mask);
  Tensor x_t = new_like(x0), target = new_like(x0);
  variate_noise_and_target_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  if (source) args.noise = source->get();
  args.rows = shape.rows;
  args.cols = shape.cols;
  args.prediction = static_cast<variate_prediction>(static_cast<int>(prediction));
  args.sigma_data = sigma_data;
  args.levels = table.view();
  args.table_size = levels.size(0);
  args.timestep = timestep_view(timestep);
  args.tokens = table.tokens;
  args.offset_noise = offset_noise;
  args.channels = channels_of(x0);
  args.x0 = x0_view.get();
  args.drawn = noise_view.get();
  args.mask = mask_view.get();
  args.x_t = View(x_t).get();
  args.target = View(target).get();
  check(variate_noise_and_target(&args));
  return {x_t, target};
}

// What both directions of the loss read.
class Loss {
 public:
  Loss(const Tensor& prediction, const Tensor& target, const OptionalTensor& weight, const OptionalTensor& mask,
       int64_t penalty, double delta)
      : shape(prediction.sizes()),
        execution(prediction),
        prediction_(prediction),
        target_(target),
        mask_(mask),
        weight_(column(weight)),
        penalty_(static_cast<int>(penalty)),
        delta_(delta) {
    check_same(prediction, target, "target must have the shape and device of prediction");
    check_mask(prediction, mask);
    if (!weight) return;
    STD_TORCH_CHECK(weight->dim() == 1 && weight->size(0) == shape.rows && weight->is_cuda() == prediction.is_cuda(),
                    "weight must have one number per sample, on the device of prediction");
  }

  template <class Args>
  void fill(Args& args) const {
    args.struct_size = sizeof args;
    args.execution = execution.get();
    args.rows = shape.rows;
    args.cols = shape.cols;
    args.penalty = static_cast<variate_penalty>(penalty_);
    args.delta = delta_;
    args.prediction = prediction_.get();
    args.target = target_.get();
    args.weight = weight_;
    args.mask = mask_.get();
  }

  Shape shape;
  Execution execution;

 private:
  View prediction_, target_, mask_;
  variate_tensor weight_;
  int penalty_;
  double delta_;
};

std::tuple<Tensor, Tensor> denoising_loss(Tensor prediction, Tensor target, OptionalTensor weight, OptionalTensor mask,
                                          int64_t penalty, double delta, bool with_gradient) {
  Loss inputs(prediction, target, weight, mask, penalty, delta);
  const bool wide = prediction.scalar_type() == ScalarType::Double || target.scalar_type() == ScalarType::Double;
  Tensor loss =
      new_tensor(std::vector<int64_t>{inputs.shape.rows}, wide ? ScalarType::Double : ScalarType::Float, prediction);
  Tensor gradient = with_gradient ? new_like(prediction) : nothing(prediction);
  variate_denoising_loss_args args = {};
  inputs.fill(args);
  args.loss = column(loss);
  if (with_gradient) args.grad_prediction = View(gradient).get();
  args.execution = inputs.execution.with_workspace(variate_denoising_loss_workspace(&args));
  check(variate_denoising_loss(&args));
  return {loss, gradient};
}

void denoising_loss_backward(Tensor grad_loss, Tensor prediction, Tensor target, OptionalTensor weight,
                             OptionalTensor mask, OptionalTensor grad_prediction, OptionalTensor grad_target,
                             bool ready, int64_t penalty, double delta) {
  const Loss inputs(prediction, target, weight, mask, penalty, delta);
  STD_TORCH_CHECK(
      grad_loss.dim() == 1 && grad_loss.size(0) == inputs.shape.rows && grad_loss.is_cuda() == prediction.is_cuda(),
      "grad_loss must have one number per sample, on the device of prediction");
  for (const OptionalTensor& grad : {grad_prediction, grad_target}) {
    if (!grad) continue;
    check_same(prediction, *grad, "a gradient must have the shape and device of prediction");
    STD_TORCH_CHECK(grad->is_contiguous(), "a gradient must be contiguous");
  }
  variate_denoising_loss_backward_args args = {};
  inputs.fill(args);
  args.ready = ready;
  args.grad_loss = column(grad_loss);
  args.grad_prediction = View(grad_prediction).get();
  args.grad_target = View(grad_target).get();
  check(variate_denoising_loss_backward(&args));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(variate, library) {
  library.def(
      "noise_and_target(Tensor x0, Tensor? timestep, Tensor levels, int prediction, float sigma_data, "
      "float offset_noise, Tensor? noise, Tensor? mask, Tensor? key, SymInt first_sample) -> (Tensor, Tensor)");
  library.def(
      "denoising_loss(Tensor prediction, Tensor target, Tensor? weight, Tensor? mask, int penalty, float delta, "
      "bool with_gradient) -> (Tensor, Tensor)");
  library.def(
      "denoising_loss_backward(Tensor grad_loss, Tensor prediction, Tensor target, Tensor? weight, Tensor? mask, "
      "Tensor(a!)? grad_prediction, Tensor(b!)? grad_target, bool ready, int penalty, float delta) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(variate, CPU, library) {
  library.impl("noise_and_target", TORCH_BOX(&noise_and_target));
  library.impl("denoising_loss", TORCH_BOX(&denoising_loss));
  library.impl("denoising_loss_backward", TORCH_BOX(&denoising_loss_backward));
}

}  // namespace variate::torch_ops
