#include "ops.h"

namespace variate::torch_ops {

namespace {

Tensor draw(variate_status (*function)(const variate_random_args*), const std::vector<int64_t>& size, ScalarType dtype,
            const Tensor& key, int64_t first_sample) {
  const Shape shape(size);
  const Noise noise(key, shape.rows, first_sample);
  const Execution execution(key);
  Tensor out = new_tensor(size, dtype, key);
  variate_random_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.noise = noise.get();
  args.rows = shape.rows;
  args.cols = shape.cols;
  args.out = View(out).get();
  check(function(&args));
  return out;
}

Tensor uniform(std::vector<int64_t> size, ScalarType dtype, Tensor key, int64_t first_sample) {
  return draw(variate_uniform, size, dtype, key, first_sample);
}

Tensor normal(std::vector<int64_t> size, ScalarType dtype, Tensor key, int64_t first_sample) {
  return draw(variate_normal, size, dtype, key, first_sample);
}

Tensor exponential(std::vector<int64_t> size, ScalarType dtype, Tensor key, int64_t first_sample) {
  return draw(variate_exponential, size, dtype, key, first_sample);
}

Tensor gumbel(std::vector<int64_t> size, ScalarType dtype, Tensor key, int64_t first_sample) {
  return draw(variate_gumbel, size, dtype, key, first_sample);
}

Tensor bits(std::vector<int64_t> size, Tensor key, int64_t first_sample) {
  return draw(variate_bits, size, ScalarType::Long, key, first_sample);
}

Tensor bernoulli(Tensor probs, ScalarType dtype, Tensor key, int64_t first_sample) {
  const Shape shape(probs.sizes());
  const Noise noise(key, shape.rows, first_sample, &probs);
  const Execution execution(probs);
  const View input(probs);
  Tensor out = new_tensor(probs.sizes(), dtype, probs);
  variate_bernoulli_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.noise = noise.get();
  args.rows = shape.rows;
  args.cols = shape.cols;
  args.probs = input.get();
  args.out = View(out).get();
  check(variate_bernoulli(&args));
  return out;
}

Tensor randint(int64_t low, int64_t high, std::vector<int64_t> size, Tensor key, int64_t first_sample) {
  const Shape shape(size);
  const Noise noise(key, shape.rows, first_sample);
  const Execution execution(key);
  Tensor out = new_tensor(size, ScalarType::Long, key);
  variate_randint_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.noise = noise.get();
  args.rows = shape.rows;
  args.cols = shape.cols;
  args.low = low;
  args.high = high;
  args.out = View(out).get();
  check(variate_randint(&args));
  return out;
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
  library.def("bits(SymInt[] size, Tensor key, SymInt first_sample) -> Tensor");
  library.def("uniform(SymInt[] size, ScalarType dtype, Tensor key, SymInt first_sample) -> Tensor");
  library.def("normal(SymInt[] size, ScalarType dtype, Tensor key, SymInt first_sample) -> Tensor");
  library.def("exponential(SymInt[] size, ScalarType dtype, Tensor key, SymInt first_sample) -> Tensor");
  library.def("gumbel(SymInt[] size, ScalarType dtype, Tensor key, SymInt first_sample) -> Tensor");
  library.def("bernoulli(Tensor probs, ScalarType dtype, Tensor key, SymInt first_sample) -> Tensor");
  library.def("randint(SymInt low, SymInt high, SymInt[] size, Tensor key, SymInt first_sample) -> Tensor");
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
