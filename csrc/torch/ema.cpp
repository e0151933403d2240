#include "ops.h"

namespace variate::torch_ops {

namespace {

bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

// Whether the elements of a tensor are next to each other in memory, in any order.
bool is_dense(const Tensor& tensor) {
  int64_t covered = 1, left = tensor.numel();
  while (left > 1) {
    int64_t size = 0;
    for (int64_t d = 0; d < tensor.dim(); ++d) {
      if (tensor.size(d) > 1 && tensor.stride(d) == covered) size = tensor.size(d);
    }
    if (size == 0) return false;
    covered *= size;
    left /= size;
  }
  return true;
}

void ema_update(std::vector<Tensor> averages, std::vector<Tensor> parameters, Tensor decay) {
  const std::size_t tensors = parameters.size(), profiles = static_cast<std::size_t>(decay.numel());
  STD_TORCH_CHECK(averages.size() == tensors * profiles, "averages must hold one tensor per parameter and decay");
  if (tensors == 0 || profiles == 0) return;
  const Execution execution(parameters[0]);
  std::vector<int64_t> sizes(tensors);
  std::vector<void*> average_data(averages.size());
  std::vector<const void*> parameter_data(tensors);
  std::vector<variate_dtype> average_dtypes(averages.size()), parameter_dtypes(tensors);
  std::vector<std::pair<Tensor, Tensor>> copies;  // averages and what is computed in their place
  for (std::size_t i = 0; i < tensors; ++i) {
    Tensor& parameter = parameters[i];
    bool flat = parameter.is_contiguous() || is_dense(parameter);
    for (std::size_t k = 0; k < profiles; ++k) {
      const Tensor& average = averages[k * tensors + i];
      check_same(parameter, average, "an average must have the shape and device of its parameter");
      flat = flat && same_strides(parameter, average);
    }
    STD_TORCH_CHECK(parameter.is_cuda() == parameters[0].is_cuda(), "all parameters must be on one device");
    if (!flat) parameter = torch::stable::contiguous(parameter);
    sizes[i] = parameter.numel();
    parameter_data[i] = parameter.const_data_ptr();
    parameter_dtypes[i] = dtype_of(parameter.scalar_type());
    for (std::size_t k = 0; k < profiles; ++k) {
      const std::size_t at = k * tensors + i;
      Tensor average = averages[at];
      if (!flat && !average.is_contiguous()) {
        copies.emplace_back(averages[at], torch::stable::contiguous(average));
        average = copies.back().second;
      }
      average_data[at] = average.mutable_data_ptr();
      average_dtypes[at] = dtype_of(average.scalar_type());
    }
  }
  variate_ema_update_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.tensors = static_cast<int64_t>(tensors);
  args.profiles = static_cast<int64_t>(profiles);
  args.sizes = sizes.data();
  args.averages = average_data.data();
  args.average_dtypes = average_dtypes.data();
  args.parameters = parameter_data.data();
  args.parameter_dtypes = parameter_dtypes.data();
  args.decay = column(decay);
  check(variate_ema_update(&args));
  for (auto& [average, copy] : copies) torch::stable::copy_(average, copy);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(variate, library) {
  library.def("ema_update_(Tensor(a!)[] averages, Tensor[] parameters, Tensor decay) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(variate, CPU, library) { library.impl("ema_update_", TORCH_BOX(&ema_update)); }

}  // namespace variate::torch_ops
