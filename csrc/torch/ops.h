// From torch tensors to the C API's structs. The ops check what memory safety needs; the messages that users read come
// from the Python layer, which checks first.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <variate/variate.h>

#include <optional>
#include <tuple>
#include <vector>

namespace variate::torch_ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline variate_dtype dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return VARIATE_FLOAT32;
    case ScalarType::Double: return VARIATE_FLOAT64;
    case ScalarType::BFloat16: return VARIATE_BFLOAT16;
    case ScalarType::Half: return VARIATE_FLOAT16;
    case ScalarType::Byte:
    case ScalarType::Bool: return VARIATE_UINT8;
    case ScalarType::Long: return VARIATE_INT64;
    default: break;
  }
  STD_TORCH_CHECK(false, "variate takes float32, float64, bfloat16, float16, uint8, bool and int64 tensors");
}

// [rows, cols]: dimension 0 of a tensor with two or more is the sample; any other tensor is one sample.
struct Shape {
  int64_t rows = 1;
  int64_t cols = 1;

  template <class Sizes>
  explicit Shape(const Sizes& sizes) {
    for (std::size_t d = 0; d < sizes.size(); ++d) (d == 0 && sizes.size() > 1 ? rows : cols) *= sizes[d];
  }
};

// A [rows, 1] view of a contiguous-or-not [rows] tensor.
inline variate_tensor column(const Tensor& tensor) {
  return {tensor.mutable_data_ptr(), dtype_of(tensor.scalar_type()), tensor.dim() ? tensor.stride(0) : 0, 0};
}

inline variate_tensor column(const OptionalTensor& tensor) {
  return tensor ? column(*tensor) : variate_tensor{nullptr, VARIATE_FLOAT32, 0, 0};
}

// A tensor as [rows, cols], in place where its inner dimensions are one stride, else copied. Keeps the copy alive.
// With `leading` 1, dimension 0 counts copies of such a tensor, `leading_stride` apart, and the first is the view.
class View {
 public:
  View() = default;

  explicit View(const Tensor& tensor, std::size_t leading = 0) : tensor_(tensor), leading_(leading) {
    if (!strides()) {
      tensor_ = torch::stable::contiguous(tensor);
      strides();
    }
  }

  explicit View(const OptionalTensor& tensor) {
    if (tensor) *this = View(*tensor);
  }

  // One number per row, as [rows, cols].
  static View of_rows(const Tensor& rows) {
    View view;
    view.tensor_ = rows;
    view.view_ = column(rows);
    return view;
  }

  variate_tensor get() const { return view_; }
  int64_t leading_stride() const { return leading_ ? tensor_->strides()[0] : 0; }

 private:
  bool strides() {
    const auto sizes = tensor_->sizes();
    const auto steps = tensor_->strides();
    const std::size_t first = leading_ + (sizes.size() > leading_ + 1 ? 1 : 0);
    int64_t step = 1, covered = 1;
    bool found = false;
    for (std::size_t d = sizes.size(); d-- > first;) {
      if (sizes[d] <= 1) continue;
      if (!found) {
        step = steps[d];
        found = true;
      } else if (steps[d] != step * covered) {
        return false;
      }
      covered *= sizes[d];
    }
    view_ = {tensor_->mutable_data_ptr(), dtype_of(tensor_->scalar_type()), first > leading_ ? steps[leading_] : 0,
             step};
    return true;
  }

  OptionalTensor tensor_;  // optional, as a tensor that is not there costs an allocation
  std::size_t leading_ = 0;
  variate_tensor view_ = {nullptr, VARIATE_FLOAT32, 0, 0};
};

// Asks for large pages under memory that nothing has touched yet: a fault for each 4 KiB of a large result costs more
// than computing it. A hint, of no effect where the memory was in use before or the system has no large pages.
void prefer_large_pages(void* data, std::size_t bytes);

// A new tensor on the device of `like`.
inline Tensor new_strided(const int64_t* sizes, const int64_t* strides, std::size_t dims, ScalarType dtype,
                          const Tensor& like) {
  int32_t device_type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(dims), sizes, strides,
                               torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type,
                               like.get_device_index(), &handle));
  Tensor tensor(handle);
  if (!tensor.is_cuda()) prefer_large_pages(tensor.mutable_data_ptr(), tensor.numel() * tensor.element_size());
  return tensor;
}

// A new contiguous tensor on the device of `like`.
template <class Sizes>
Tensor new_tensor(const Sizes& sizes, ScalarType dtype, const Tensor& like) {
  constexpr std::size_t inline_dims = 8;
  int64_t inline_strides[inline_dims];
  std::vector<int64_t> long_strides(sizes.size() > inline_dims ? sizes.size() : 0);
  int64_t* strides = sizes.size() > inline_dims ? long_strides.data() : inline_strides;
  int64_t step = 1;
  for (std::size_t d = sizes.size(); d-- > 0;) {
    strides[d] = step;
    step *= sizes[d] > 1 ? sizes[d] : 1;
  }
  return new_strided(sizes.data(), strides, sizes.size(), dtype, like);
}

inline Tensor new_like(const Tensor& like) { return new_tensor(like.sizes(), like.scalar_type(), like); }
inline Tensor nothing(const Tensor& like) { return new_tensor(std::vector<int64_t>{0}, like.scalar_type(), like); }

inline void check_same(const Tensor& a, const Tensor& b, const char* message) {
  const auto x = a.sizes();
  const auto y = b.sizes();
  bool same = x.size() == y.size();
  for (std::size_t d = 0; same && d < x.size(); ++d) same = x[d] == y[d];
  STD_TORCH_CHECK(same, message);
  STD_TORCH_CHECK(a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index(), message);
}

// Where the op runs: torch's threads, or the current CUDA stream of the tensor's device, which becomes the current one.
class Execution {
 public:
  explicit Execution(const Tensor& tensor);
  ~Execution();
  Execution(const Execution&) = delete;
  Execution& operator=(const Execution&) = delete;

  variate_execution get() const { return execution_; }

  // `bytes` of scratch memory, alive as long as this.
  variate_execution with_workspace(uint64_t bytes);

 private:
  const Tensor& like_;
  OptionalTensor workspace_;
  variate_execution execution_ = {};
  DeviceGuardHandle guard_ = nullptr;
};

// One number that a call may be given as a tensor. On the host it travels with a launch on a GPU.
struct Scalar {
  variate_tensor tensor = {nullptr, VARIATE_FLOAT32, 0, 0};
  double value = 0.0;

  Scalar(const OptionalTensor& given, const Tensor& like) {
    if (!given) return;
    STD_TORCH_CHECK(given->numel() == 1, "expected one number");
    tensor = column(*given);
    if (!like.is_cuda() || given->is_cuda()) return;
    STD_TORCH_CHECK(tensor.dtype == VARIATE_FLOAT32 || tensor.dtype == VARIATE_FLOAT64,
                    "expected a float32 or float64 number");
    value = tensor.dtype == VARIATE_FLOAT64 ? *static_cast<const double*>(tensor.data)
                                            : *static_cast<const float*>(tensor.data);
    tensor.data = nullptr;
  }
};

// The noise of `rows` samples. Holds the key.
class Noise {
 public:
  Noise(const Tensor& key, int64_t rows, int64_t first_sample, const Tensor* like = nullptr);
  variate_noise get() const { return noise_; }

 private:
  Tensor key_;
  variate_noise noise_;
};

// Throws what libvariate says of a call that failed.
inline void check(variate_status status) { STD_TORCH_CHECK(status == VARIATE_OK, variate_last_error()); }

}  // namespace variate::torch_ops
