#include "ops.h"

namespace variate::torch_ops {

namespace {

// What every draw shares: the shape of `out`, the noise, where it runs.
template <class Args>
class Draw {
 public:
  Draw(const Tensor& out, const Tensor& key, int64_t first_sample)
      : shape_(out.sizes()), noise_(key, shape_.rows, first_sample, &out), execution_(out) {
    STD_TORCH_CHECK(out.is_contiguous(), "out must be contiguous");
    args.struct_size = sizeof args;
    args.execution = execution_.get();
    args.noise = noise_.get();
    args.rows = shape_.rows;
    args.cols = shape_.cols;
    args.out = {out.mutable_data_ptr(), dtype_of(out.scalar_type()), shape_.cols, 1};
  }

  Args args = {};

 private:
  Shape shape_;
  Noise noise_;
  Execution execution_;
};

void bits(Tensor out, Tensor key, int64_t first_sample) {
  const Draw<variate_random_args> draw(out, key, first_sample);
  check(variate_bits(&draw.args));
}

void uniform(Tensor out, Tensor key, int64_t first_sample) {
  const Draw<variate_random_args> draw(out, key, first_sample);
  check(variate_uniform(&draw.args));
}

void normal(Tensor out, Tensor key, int64_t first_sample) {
  const Draw<variate_random_args> draw(out, key, first_sample);
  check(variate_normal(&draw.args));
}

void exponential(Tensor out, Tensor key, int64_t first_sample) {
  const Draw<variate_random_args> draw(out, key, first_sample);
  check(variate_exponential(&draw.args));
}

void gumbel(Tensor out, Tensor key, int64_t first_sample) {
  const Draw<variate_random_args> draw(out, key, first_sample);
  check(variate_gumbel(&draw.args));
}

void bernoulli(Tensor out, Tensor probs, Tensor key, int64_t first_sample) {
  check_same(out, probs, "out must have the shape and device of probs");
  const View input(probs);
  Draw<variate_bernoulli_args> draw(out, key, first_sample);
  draw.args.probs = input.get();
  check(variate_bernoulli(&draw.args));
}

void randint(Tensor out, int64_t low, int64_t high, Tensor key, int64_t first_sample) {
  Draw<variate_randint_args> draw(out, key, first_sample);
  draw.args.low = low;
  draw.args.high = high;
  check(variate_randint(&draw.args));
}

Tensor categorical(Tensor logits, Tensor key, int64_t first_sample) {
  STD_TORCH_CHECK(logits.dim() >= 1, "logits must have at least one dimension");
  const Shape shape(logits.sizes());
  const Noise noise(key, shape.rows, first_sample, &logits);
  const Execution execution(logits);
  const View input(logits);
  const auto sizes = logits.sizes();
  Tensor out = new_tensor(std::vector<int64_t>(sizes.begin(), sizes.end() - 1), ScalarType::Long, logits);
  variate_categorical_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.noise = noise.get();
  args.rows = shape.rows;
  args.categories = sizes[sizes.size() - 1];
  args.groups = args.categories > 0 ? shape.cols / args.categories : 0;
  args.logits = input.get();
  args.out = {out.mutable_data_ptr(), VARIATE_INT64, args.groups, 1};
  check(variate_categorical(&args));
  return out;
}

Tensor fold_in(Tensor keys, Tensor data) {
  STD_TORCH_CHECK(keys.scalar_type() == ScalarType::Long && data.scalar_type() == ScalarType::Long &&
                      keys.dim() == data.dim() + 1 && keys.size(keys.dim() - 1) == 2 &&
                      keys.numel() == 2 * data.numel(),
                  "fold_in takes int64 keys [..., 2] and int64 data [...]");
  STD_TORCH_CHECK(keys.is_cuda() == data.is_cuda() && keys.get_device_index() == data.get_device_index(),
                  "fold_in: keys and data must be on the same device");
  const Execution execution(keys);
  const Tensor inputs = torch::stable::contiguous(keys);
  const Tensor values = torch::stable::contiguous(data);
  Tensor out = new_like(keys);
  variate_fold_in_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.rows = data.numel();
  args.keys = {inputs.mutable_data_ptr(), VARIATE_INT64, 2, 1};
  args.data = {values.mutable_data_ptr(), VARIATE_INT64, 1, 1};
  args.out = {out.mutable_data_ptr(), VARIATE_INT64, 2, 1};
  check(variate_fold_in(&args));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(variate, library) {
  // A draw fills a tensor that torch made: sizes and dtypes are slow to pass through the dispatcher.
  library.def("bits(Tensor(a!) out, Tensor key, SymInt first_sample) -> ()");
  library.def("uniform(Tensor(a!) out, Tensor key, SymInt first_sample) -> ()");
  library.def("normal(Tensor(a!) out, Tensor key, SymInt first_sample) -> ()");
  library.def("exponential(Tensor(a!) out, Tensor key, SymInt first_sample) -> ()");
  library.def("gumbel(Tensor(a!) out, Tensor key, SymInt first_sample) -> ()");
  library.def("bernoulli(Tensor(a!) out, Tensor probs, Tensor key, SymInt first_sample) -> ()");
  library.def("randint(Tensor(a!) out, SymInt low, SymInt high, Tensor key, SymInt first_sample) -> ()");
  library.def("categorical(Tensor logits, Tensor key, SymInt first_sample) -> Tensor");
  library.def("fold_in(Tensor keys, Tensor data) -> Tensor");
}

template <class Library>
static void implement(Library& library) {
  library.impl("bits", TORCH_BOX(&bits));
  library.impl("uniform", TORCH_BOX(&uniform));
  library.impl("normal", TORCH_BOX(&normal));
  library.impl("exponential", TORCH_BOX(&exponential));
  library.impl("gumbel", TORCH_BOX(&gumbel));
  library.impl("bernoulli", TORCH_BOX(&bernoulli));
  library.impl("randint", TORCH_BOX(&randint));
  library.impl("categorical", TORCH_BOX(&categorical));
  library.impl("fold_in", TORCH_BOX(&fold_in));
}

STABLE_TORCH_LIBRARY_IMPL(variate, CPU, library) { implement(library); }
#if defined(VARIATE_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(variate, CUDA, library) { implement(library); }
#endif

}  // namespace variate::torch_ops
