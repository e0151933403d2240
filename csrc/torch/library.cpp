#include "ops.h"

#include <dlfcn.h>
#include <sys/mman.h>

namespace variate::torch_ops {

namespace {

// The current CUDA stream. The function lives in libtorch_cuda, which a CPU build of torch does not have, so it is
// looked up by name: one binary serves both.
void* current_cuda_stream(int32_t device_index) {
  using GetStream = AOTITorchError (*)(int32_t, void**);
  static const auto get_stream = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<GetStream>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(get_stream, "the installed torch has no CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(get_stream(device_index, &stream));
  return stream;
}

}  // namespace

void prefer_large_pages(void* data, std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t page = std::uintptr_t{1} << 21;
  const std::uintptr_t start = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t first = (start + page - 1) / page * page, end = (start + bytes) / page * page;
  if (bytes >= 4 * page && end > first) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

Execution::Execution(const Tensor& tensor) : like_(tensor) {
  if (tensor.is_cuda()) {
    const int32_t index = tensor.get_device_index();
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_create_device_guard(index, &guard_));
    execution_.device = VARIATE_CUDA;
    execution_.stream = current_cuda_stream(index);
  } else {
    execution_.device = VARIATE_CPU;
    execution_.threads = static_cast<int32_t>(torch::stable::get_num_threads());
  }
}

Execution::~Execution() {
  if (guard_) aoti_torch_delete_device_guard(guard_);
}

variate_execution Execution::with_workspace(uint64_t bytes) {
  if (bytes == 0) return execution_;
  workspace_ = new_tensor(std::vector<int64_t>{static_cast<int64_t>(bytes)}, ScalarType::Byte, like_);
  execution_.workspace = workspace_->mutable_data_ptr();
  execution_.workspace_bytes = bytes;
  return execution_;
}

Noise::Noise(const Tensor& key, int64_t rows, int64_t first_sample, const Tensor* like) : key_(key) {
  STD_TORCH_CHECK(key.scalar_type() == ScalarType::Long, "key must be int64");
  const int64_t dim = key.dim();
  STD_TORCH_CHECK((dim == 1 || (dim == 2 && key.size(0) == rows)) && key.size(dim - 1) == 2,
                  "key must have shape [2], or [rows, 2]");
  STD_TORCH_CHECK(!like || (like->is_cuda() == key.is_cuda() && like->get_device_index() == key.get_device_index()),
                  "key must be on the device of the other tensors");
  if (!key.is_contiguous()) key_ = torch::stable::contiguous(key);
  noise_ = {static_cast<const int64_t*>(key_.const_data_ptr()), dim == 2 ? 2 : 0, first_sample};
}

}  // namespace variate::torch_ops

// The namespace is declared here, once; each family adds its ops.
STABLE_TORCH_LIBRARY(variate, library) { (void)library; }
