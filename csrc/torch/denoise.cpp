#include "ops.h"

namespace variate::torch_ops {

namespace {

enum Wanted { denoised = 1, saved = 2, state_out = 4, next = 8, twice = 16 };

// Each is a tensor like the sample, of any floating dtype.
class Inputs {
 public:
  explicit Inputs(const Tensor& sample) : sample_(sample) {}

  variate_tensor operator()(const Tensor& tensor, const char* message) {
    if (&tensor != &sample_) check_same(sample_, tensor, message);
    views_[count_] = View(tensor);
    return views_[count_++].get();
  }

  variate_tensor operator()(const OptionalTensor& tensor, const char* message) {
    return tensor ? (*this)(*tensor, message) : variate_tensor{nullptr, VARIATE_FLOAT32, 0, 0};
  }

 private:
  const Tensor& sample_;
  View views_[6 + VARIATE_DENOISE_HISTORY];
  int count_ = 0;
};

void check_device(const Tensor& tensor, const Tensor& like, const char* message) {
  STD_TORCH_CHECK(tensor.is_cuda() == like.is_cuda() && tensor.get_device_index() == like.get_device_index(), message);
}

// The row of the table, or one for each sample, or for each of the equal parts of a sample.
void set_rows(variate_denoise_step_args& args, const OptionalTensor& rows, const Tensor& sample) {
  if (!rows) return;
  STD_TORCH_CHECK(rows->scalar_type() == ScalarType::Long, "row must be an integer or an int64 tensor");
  check_device(*rows, sample, "row must be on the device of sample");
  const auto* data = static_cast<const int64_t*>(rows->const_data_ptr());
  const int64_t dim = rows->dim();
  if (dim == 0 && !sample.is_cuda()) {
    args.row = *data;
    return;
  }
  STD_TORCH_CHECK(dim <= 2 && (dim == 0 || rows->size(0) == args.rows), "row must have shape [], [B] or [B, T]");
  args.table_rows = {rows->mutable_data_ptr(), VARIATE_INT64, dim > 0 ? rows->stride(0) : 0,
                     dim > 1 ? rows->stride(1) : 0};
  args.table_row_tokens = dim > 1 ? rows->size(1) : 1;
}

void set_counter(variate_denoise_step_args& args, const OptionalTensor& counter, const Tensor& sample) {
  if (!counter) return;
  const int64_t dim = counter->dim();
  STD_TORCH_CHECK(counter->scalar_type() == ScalarType::Long && counter->is_contiguous() &&
                      (dim == 1 || (dim == 2 && counter->size(0) == args.rows)) && counter->size(dim - 1) == 2,
                  "first_step must be an integer, or a contiguous int64 tensor [2] or [B, 2]");
  check_device(*counter, sample, "first_step must be on the device of sample");
  args.counter = static_cast<int64_t*>(counter->mutable_data_ptr());
  args.counter_stride = dim > 1 ? 2 : 0;
}

// prev, and what else is wanted, in order.
std::vector<Tensor> run(const OptionalTensor& counter, const Tensor& sample, const Tensor& output,
                        const Tensor& coefficients, int64_t row, double clip, int64_t wanted, const OptionalTensor& key,
                        int64_t step, const OptionalTensor& history_0, const OptionalTensor& history_1,
                        const OptionalTensor& history_2, const OptionalTensor& state, int64_t first_sample,
                        const OptionalTensor& rows, const OptionalTensor& unconditional, const OptionalTensor& guidance,
                        double rescale, double quantile, const OptionalTensor& variance, int64_t variance_kind,
                        const OptionalTensor& drawn) {
  const Shape shape(sample.sizes());
  Execution execution(sample);
  variate_denoise_step_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.rows = shape.rows;
  args.cols = shape.cols;
  std::optional<Noise> noise;
  if (key) args.noise = noise.emplace(*key, shape.rows, first_sample, &sample).get();

  Inputs view(sample);
  args.sample = view(sample, "");
  args.output = view(output, "model_output must have the shape and device of sample");
  args.unconditional = view(unconditional, "unconditional must have the shape and device of sample");
  args.variance = view(variance, "variance must have the shape and device of sample");
  args.drawn = view(drawn, "noise must have the shape and device of sample");
  args.state = view(state, "state must have the shape and device of sample");
  args.history[0] = view(history_0, "history must have the shape and device of sample");
  args.history[1] = view(history_1, "history must have the shape and device of sample");
  args.history[2] = view(history_2, "history must have the shape and device of sample");
  const Scalar guide(guidance, sample);
  args.guidance = guide.tensor;
  args.guidance_value = guide.value;
  args.rescale = rescale;

  STD_TORCH_CHECK(coefficients.scalar_type() == ScalarType::Double && coefficients.is_contiguous() &&
                      coefficients.dim() == 2 && coefficients.size(1) == VARIATE_DENOISE_COLUMNS,
                  "table must hold contiguous float64 [rows, 26]");
  check_device(coefficients, sample, "table must be on the device of sample");
  args.coefficients = static_cast<const double*>(coefficients.const_data_ptr());
  args.table_size = coefficients.size(0);
  args.row = row;
  set_rows(args, rows, sample);
  args.clip = clip;
  args.quantile = quantile;
  args.variance_kind = static_cast<variate_denoise_variance>(variance_kind);
  args.step = step;
  set_counter(args, counter, sample);

  std::vector<Tensor> results;
  const auto add = [&](variate_tensor& to) {
    results.push_back(new_like(sample));
    to = View(results.back()).get();
  };
  add(args.prev);
  if (wanted & Wanted::denoised) add(args.denoised);
  if (wanted & Wanted::saved) add(args.saved);
  if (wanted & Wanted::state_out) add(args.state_out);
  if (wanted & Wanted::next) {
    args.copies = wanted & Wanted::twice ? 2 : 1;
    std::vector<int64_t> sizes(sample.sizes().begin(), sample.sizes().end());
    STD_TORCH_CHECK(args.copies == 1 || sizes.size() > 1, "copies of next need a dimension of samples");
    if (args.copies == 2) sizes[0] *= 2;
    results.push_back(new_tensor(sizes, output.scalar_type(), sample));
    args.next = View(results.back()).get();
  }
  args.execution = execution.with_workspace(variate_denoise_step_workspace(&args));
  check(variate_denoise_step(&args));
  return results;
}

std::vector<Tensor> denoise_step(Tensor sample, Tensor output, Tensor coefficients, int64_t row, double clip,
                                 int64_t wanted, OptionalTensor key, int64_t step, OptionalTensor history_0,
                                 OptionalTensor history_1, OptionalTensor history_2, OptionalTensor state,
                                 int64_t first_sample) {
  return run({}, sample, output, coefficients, row, clip, wanted, key, step, history_0, history_1, history_2, state,
             first_sample, {}, {}, {}, 0.0, 0.0, {}, VARIATE_VARIANCE_FIXED, {});
}

// torch.compile wants an op that changes an argument to return a fixed number of tensors: what is not wanted is empty.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> denoise_step_full(
    OptionalTensor counter, Tensor sample, Tensor output, Tensor coefficients, int64_t row, double clip, int64_t wanted,
    OptionalTensor key, int64_t step, OptionalTensor history_0, OptionalTensor history_1, OptionalTensor history_2,
    OptionalTensor state, int64_t first_sample, OptionalTensor rows, OptionalTensor unconditional,
    OptionalTensor guidance, double rescale, double quantile, OptionalTensor variance, int64_t variance_kind,
    OptionalTensor drawn) {
  const std::vector<Tensor> found =
      run(counter, sample, output, coefficients, row, clip, wanted, key, step, history_0, history_1, history_2, state,
          first_sample, rows, unconditional, guidance, rescale, quantile, variance, variance_kind, drawn);
  std::size_t at = 1;
  const auto result = [&](int bit) { return wanted & bit ? found[at++] : nothing(sample); };
  Tensor x0 = result(Wanted::denoised), converted = result(Wanted::saved), state_after = result(Wanted::state_out);
  return {found[0], x0, converted, state_after, result(Wanted::next)};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(variate, library) {
  // What most steps need, and the whole: an argument costs a call about what a small addition does, but for those at
  // the end that are not passed.
  library.def(
      "denoise_step(Tensor sample, Tensor output, Tensor coefficients, SymInt row, float clip=0., int wanted=0, "
      "Tensor? key=None, SymInt step=0, Tensor? history_0=None, Tensor? history_1=None, Tensor? history_2=None, "
      "Tensor? state=None, SymInt first_sample=0) -> Tensor[]");
  library.def(
      "denoise_step_full(Tensor(a!)? counter, Tensor sample, Tensor output, Tensor coefficients, SymInt row, "
      "float clip, int wanted, Tensor? key, SymInt step, Tensor? history_0, Tensor? history_1, Tensor? history_2, "
      "Tensor? state, SymInt first_sample, Tensor? rows, Tensor? unconditional, Tensor? guidance, float rescale, "
      "float quantile, Tensor? variance, int variance_kind, Tensor? drawn) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

template <class Library>
static void implement(Library& library) {
  library.impl("denoise_step", TORCH_BOX(&denoise_step));
  library.impl("denoise_step_full", TORCH_BOX(&denoise_step_full));
}

STABLE_TORCH_LIBRARY_IMPL(variate, CPU, library) { implement(library); }
#if defined(VARIATE_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(variate, CUDA, library) { implement(library); }
#endif

}  // namespace variate::torch_ops
