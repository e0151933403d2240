// The products are aten's, on chunks of the logits that stay in cache. The epilogue turns a chunk into its likelihood
// and, in place, into its gradient, which two more products carry on.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <algorithm>
#include <string>

#include "ops.h"

namespace variate::torch_ops {

namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;

constexpr int64_t chunk_elements = int64_t{1} << 18;  // a share of a core's second-level cache
constexpr int64_t chunk_cols = 2048;
constexpr int64_t least_chunk_rows = 64;  // with fewer, products are slow

int64_t pieces_of(int64_t size, int64_t at_most) { return size > 0 ? (size - 1) / at_most + 1 : 0; }

// Tensors as matrices.

Tensor matrix(const Tensor& tensor, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride,
              int64_t offset = 0) {
  const int64_t sizes[] = {rows, cols}, strides[] = {row_stride, col_stride};
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(tensor.get(), 2, sizes, strides, offset, &handle));
  return Tensor(handle);
}

Tensor rows_of(const Tensor& m, int64_t row, int64_t rows) {
  return matrix(m, rows, m.size(1), m.stride(0), m.stride(1), row * m.stride(0));
}

Tensor transposed(const Tensor& m) { return matrix(m, m.size(1), m.size(0), m.stride(1), m.stride(0)); }

// [H], [B, H] or [K, B, H] as [rows, H]; copied only where the leading dimensions have no common stride.
Tensor flattened(Tensor tensor) {
  const int64_t dim = tensor.dim();
  if (dim == 1) return matrix(tensor, 1, tensor.size(0), 0, tensor.stride(0));
  if (dim == 2) return tensor;
  const int64_t outer = tensor.size(0), inner = tensor.size(1);
  if (outer > 1 && inner > 1 && tensor.stride(0) != inner * tensor.stride(1)) {
    tensor = torch::stable::contiguous(tensor);
  }
  return matrix(tensor, outer * inner, tensor.size(2), tensor.stride(inner == 1 ? 0 : 1), tensor.stride(2));
}

Tensor new_matrix(int64_t rows, int64_t cols, ScalarType dtype, const Tensor& like) {
  const int64_t sizes[] = {rows, cols};
  return new_tensor(IntHeaderOnlyArrayRef(sizes, 2), dtype, like);
}

bool is_narrow(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::BFloat16 || tensor.scalar_type() == ScalarType::Half;
}

// Multiplies in place, by one number or by one a row.
void multiply(Tensor m, const Tensor& factors) {
  StableIValue stack[] = {torch::stable::detail::from(m), torch::stable::detail::from(factors)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mul_", "Tensor", stack, TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);
}

// out = a sum of `terms` products: in float32 where `out` is narrower and there are several.
class ProductSum {
 public:
  ProductSum() = default;
  ProductSum(const Tensor& out, int64_t terms) : out_(out) {
    if (terms == 0) torch::stable::zero_(*out_);
    if (terms > 1 && is_narrow(out)) wide_ = new_matrix(out.size(0), out.size(1), ScalarType::Float, out);
  }

  explicit operator bool() const { return out_.has_value(); }

  // Adds a b to the rows from `row` on; `first` says that they hold nothing yet.
  void add(int64_t row, bool first, const Tensor& a, const Tensor& b) {
    Tensor out = rows_of(*out_, row, a.size(0));
    if (first || wide_) {
      STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()));
    } else {
      STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), 1.0, 1.0));
    }
    if (!wide_) return;
    Tensor sum = rows_of(*wide_, row, a.size(0));
    torch::stable::copy_(sum, first ? out : torch::stable::subtract(sum, out, -1.0));
  }

  void finish() {
    if (wide_) torch::stable::copy_(*out_, *wide_);
  }

 private:
  OptionalTensor out_, wide_;
};

// Where gradients go; one without a tensor is not wanted.
struct Gradients {
  OptionalTensor hidden, weight, bias;

  bool any() const { return hidden || weight || bias; }
};

using Epilogue = variate_status (*)(const variate_linear_nll_args*);

// A last layer, its target, and how its logits are cut: by their shape alone, so that results are, too.
class Layer {
 public:
  Layer(const Tensor& hidden, const Tensor& weight, const OptionalTensor& bias, const Tensor& target, Epilogue epilogue)
      : hidden_(flattened(hidden)), weight_(weight), bias_(bias), epilogue_(epilogue), execution_(hidden_) {
    STD_TORCH_CHECK(hidden.dim() >= 1 && hidden.dim() <= 3, "hidden must be [H], [B, H] or [K, B, H]");
    STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == hidden_.size(1), "weight must be [outputs, hidden units]");
    STD_TORCH_CHECK(weight.scalar_type() == hidden.scalar_type(), "weight must have the dtype of hidden");
    rows_ = hidden_.size(0);
    cols_ = weight.size(0);
    STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == cols_), "bias must be [outputs]");
    target_rows_ = hidden.dim() == 1 ? 1 : hidden.size(hidden.dim() - 2);
    const Shape shape(target.sizes());
    STD_TORCH_CHECK(shape.rows == target_rows_, "target must have a row for each row of hidden");
    ways_ = shape.cols ? cols_ / shape.cols : 1;
    STD_TORCH_CHECK(shape.cols * ways_ == cols_, "target must divide the outputs");
    target_ = View(target);
    wide_ = hidden.scalar_type() == ScalarType::Double || target.scalar_type() == ScalarType::Double;
    blocks_ = pieces_of(cols_, std::max(chunk_cols, ways_));
    block_cols_ = blocks_ ? pieces_of(cols_ / ways_, blocks_) * ways_ : 0;
    blocks_ = blocks_ ? pieces_of(cols_, block_cols_) : 0;
    const int64_t most_rows = std::max(least_chunk_rows, chunk_elements / std::max<int64_t>(block_cols_, 1));
    chunks_ = pieces_of(rows_, most_rows);
    chunk_rows_ = chunks_ ? pieces_of(rows_, chunks_) : 0;
  }

  int64_t rows() const { return rows_; }

  // The nll of each row.
  Tensor nll(const Gradients& gradients) {
    const ScalarType dtype = wide_ || blocks_ > 1 ? ScalarType::Double : ScalarType::Float;
    Tensor parts = new_matrix(std::max<int64_t>(blocks_, 1), rows_, dtype, hidden_);
    if (blocks_ == 0) torch::stable::zero_(parts);
    run(std::nullopt, {parts.mutable_data_ptr(), dtype_of(dtype), 1, 0}, gradients);
    if (blocks_ > 1) {
      const int64_t dim[] = {0};
      parts = torch::stable::sum(parts, IntHeaderOnlyArrayRef(dim, 1));
    }
    return torch::stable::to(parts, wide_ ? ScalarType::Double : ScalarType::Float);
  }

  // All chunks stay, as the gradient of sum_r nll_r to the logits, in `residual` [rows, outputs].
  void keep(const Tensor& residual) { kept_ = residual; }

  // The gradients of sum_r nll_r, but those of weight and bias weighted by the column grad_nll.
  void gradients(const OptionalTensor& grad_nll, const Gradients& gradients) { run(grad_nll, {}, gradients); }

 private:
  void run(const OptionalTensor& grad_nll, variate_tensor nll, const Gradients& gradients) {
    ProductSum hidden_sum;
    if (gradients.hidden) hidden_sum = ProductSum(flattened(*gradients.hidden), blocks_);
    OptionalTensor grad_bias;
    if (gradients.bias) {
      grad_bias = new_matrix(1, cols_, wide_ ? ScalarType::Double : ScalarType::Float, hidden_);
      torch::stable::zero_(*grad_bias);
    }
    const Tensor buffer = kept_ ? *kept_ : new_matrix(chunk_rows_, block_cols_, hidden_.scalar_type(), hidden_);
    for (int64_t col = 0; col < cols_; col += block_cols_) {
      const int64_t cols = std::min(block_cols_, cols_ - col);
      const Tensor weight = rows_of(weight_, col, cols);
      ProductSum weight_sum;
      if (gradients.weight) weight_sum = ProductSum(rows_of(*gradients.weight, col, cols), chunks_);
      for (int64_t row = 0; row < rows_; row += chunk_rows_) {
        const int64_t rows = std::min(chunk_rows_, rows_ - row);
        const Tensor inputs = dense_rows(row, rows);
        const Tensor chunk =
            kept_ ? matrix(buffer, rows, cols, cols_, 1, row * cols_ + col) : matrix(buffer, rows, cols, cols, 1);
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(chunk.get(), inputs.get(), transposed(weight).get()));
        epilogue(chunk, row, col, grad_nll, nll, gradients.any(), grad_bias);
        if (hidden_sum) hidden_sum.add(row, col == 0, chunk, weight);
        if (weight_sum) weight_sum.add(0, row == 0, transposed(chunk), weighted(inputs, grad_nll, row));
      }
      if (weight_sum) weight_sum.finish();
      if (nll.data) nll = moved(nll, rows_, 0);
    }
    if (hidden_sum) hidden_sum.finish();
    if (grad_bias) {
      Tensor out = matrix(*gradients.bias, 1, cols_, 0, gradients.bias->stride(0));
      torch::stable::copy_(out, *grad_bias);
    }
  }

  // Rows of hidden with their columns side by side, so that a product's order of summation does not depend on strides.
  Tensor dense_rows(int64_t row, int64_t rows) const {
    const Tensor part = rows_of(hidden_, row, rows);
    const bool dense = part.stride(1) == 1 && part.stride(0) >= part.size(1);
    return dense ? part : torch::stable::contiguous(part);
  }

  static Tensor weighted(const Tensor& inputs, const OptionalTensor& grad_nll, int64_t row) {
    if (!grad_nll) return inputs;
    Tensor result = torch::stable::clone(inputs);
    multiply(result, rows_of(*grad_nll, row, inputs.size(0)));
    return result;
  }

  void epilogue(const Tensor& chunk, int64_t row, int64_t col, const OptionalTensor& grad_nll,
                const variate_tensor& nll, bool gradient, const OptionalTensor& grad_bias) {
    variate_linear_nll_args args = {};
    args.struct_size = sizeof args;
    args.execution = execution_.get();
    args.rows = chunk.size(0);
    args.cols = chunk.size(1);
    args.ways = ways_;
    args.target_rows = target_rows_;
    args.first_row = row;
    args.products = {chunk.mutable_data_ptr(), dtype_of(chunk.scalar_type()), chunk.stride(0), 1};
    if (bias_)
      args.bias = moved({bias_->mutable_data_ptr(), dtype_of(bias_->scalar_type()), 0, bias_->stride(0)}, 0, col);
    args.target = moved(target_.get(), 0, col / ways_);
    if (grad_nll) args.grad_nll = moved(column(*grad_nll), row, 0);
    args.nll = moved(nll, row, 0);
    if (gradient) args.residual = args.products;
    if (grad_bias)
      args.grad_bias = moved({grad_bias->mutable_data_ptr(), dtype_of(grad_bias->scalar_type()), 0, 1}, 0, col);
    args.execution = execution_.with_workspace(variate_linear_nll_workspace(&args));
    check(epilogue_(&args));
  }

  // The view of a tensor from (row, col) on.
  static variate_tensor moved(variate_tensor view, int64_t row, int64_t col) {
    if (!view.data) return view;
    int64_t size = 1;
    switch (view.dtype) {
      case VARIATE_FLOAT64:
      case VARIATE_INT64: size = 8; break;
      case VARIATE_FLOAT32: size = 4; break;
      case VARIATE_BFLOAT16:
      case VARIATE_FLOAT16: size = 2; break;
      case VARIATE_UINT8: break;
    }
    view.data = static_cast<char*>(view.data) + size * (row * view.row_stride + col * view.col_stride);
    return view;
  }

  Tensor hidden_, weight_;
  OptionalTensor bias_, kept_;
  View target_;
  Epilogue epilogue_;
  Execution execution_;
  int64_t rows_, cols_, target_rows_, ways_, blocks_, block_cols_, chunks_, chunk_rows_;
  bool wide_;
};

// hidden.sizes() without the last; one sample is [1].
Tensor shaped_as_rows_of(const Tensor& nll, const Tensor& hidden) {
  const int64_t dim = hidden.dim();
  if (dim < 3) return torch::stable::flatten(nll);
  const int64_t sizes[] = {hidden.size(0), hidden.size(1)};
  return torch::stable::view(nll, IntHeaderOnlyArrayRef(sizes, 2));
}

template <Epilogue epilogue>
std::tuple<Tensor, Tensor, Tensor, Tensor> forward(Tensor hidden, Tensor weight, OptionalTensor bias, Tensor target,
                                                   bool hidden_grad, bool weight_grad, bool bias_grad) {
  Layer layer(hidden, weight, bias, target, epilogue);
  const auto wanted = [](bool grad, const OptionalTensor& like) {
    return grad && like ? OptionalTensor(new_like(*like)) : std::nullopt;
  };
  const Gradients unit = {wanted(hidden_grad, hidden), wanted(weight_grad, weight), wanted(bias_grad, bias)};
  const Tensor nll = shaped_as_rows_of(layer.nll(unit), hidden);
  return {nll, unit.hidden.value_or(nothing(hidden)), unit.weight.value_or(nothing(weight)),
          unit.bias.value_or(nothing(weight))};
}

// The nll, its gradient to the logits, and from that the gradient of nll.sum() to hidden.
template <Epilogue epilogue>
std::tuple<Tensor, Tensor, Tensor> residual(Tensor hidden, Tensor weight, OptionalTensor bias, Tensor target) {
  Layer layer(hidden, weight, bias, target, epilogue);
  const Tensor kept = new_matrix(layer.rows(), weight.size(0), hidden.scalar_type(), hidden);
  const Tensor grad_hidden = new_like(hidden);
  layer.keep(kept);
  const Tensor nll = shaped_as_rows_of(layer.nll({grad_hidden, std::nullopt, std::nullopt}), hidden);
  return {nll, kept, grad_hidden};
}

template <class T>
T first(const Tensor& values) {
  return *static_cast<const T*>(values.const_data_ptr());
}

template <class T>
bool all_equal(const Tensor& values) {
  const T* x = static_cast<const T*>(values.const_data_ptr());
  return std::all_of(x, x + values.numel(), [x](T value) { return value == x[0]; });
}

// The tensors of `gradients` hold those of sum_r nll_r if `unit`, and are given those of sum_r grad_nll_r nll_r.
template <Epilogue epilogue>
void backward(Tensor grad_nll, Tensor hidden, Tensor weight, OptionalTensor bias, Tensor target,
              OptionalTensor grad_hidden, OptionalTensor grad_weight, OptionalTensor grad_bias, bool unit) {
  const Gradients gradients = {grad_hidden, grad_weight, grad_bias};
  Layer layer(hidden, weight, bias, target, epilogue);
  STD_TORCH_CHECK(grad_nll.numel() == layer.rows(), "grad_nll must have one number per row");
  const Tensor weights = torch::stable::contiguous(grad_nll);
  const bool wide = weights.scalar_type() == ScalarType::Double;
  const bool uniform = layer.rows() > 0 && (wide ? all_equal<double>(weights) : all_equal<float>(weights));
  const Tensor factors = matrix(weights, layer.rows(), 1, 1, 1);
  if (!uniform) {
    // Weighted rows of hidden's; the others' sums over the rows are made again.
    layer.gradients(factors, {unit ? std::nullopt : grad_hidden, grad_weight, grad_bias});
    if (grad_hidden) multiply(flattened(*grad_hidden), factors);
    return;
  }
  if (!unit) layer.gradients(std::nullopt, gradients);
  const Tensor factor = rows_of(factors, 0, 1);
  if (wide ? first<double>(weights) == 1.0 : first<float>(weights) == 1.0f) return;
  if (grad_hidden) multiply(flattened(*grad_hidden), factor);
  if (grad_weight) multiply(*grad_weight, factor);
  if (grad_bias) multiply(matrix(*grad_bias, 1, grad_bias->size(0), 0, grad_bias->stride(0)), factor);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(variate, library) {
  for (const char* likelihood : {"bernoulli", "categorical"}) {
    const std::string name = std::string("linear_") + likelihood + "_nll";
    library.def((name +
                 "(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, bool hidden_grad, bool weight_grad, "
                 "bool bias_grad) -> (Tensor, Tensor, Tensor, Tensor)")
                    .c_str());
    library.def(
        (name + "_residual(Tensor hidden, Tensor weight, Tensor? bias, Tensor target) -> (Tensor, Tensor, Tensor)")
            .c_str());
    library.def((name + "_backward(Tensor grad_nll, Tensor hidden, Tensor weight, Tensor? bias, Tensor target, "
                        "Tensor(a!)? grad_hidden, Tensor(b!)? grad_weight, Tensor(c!)? grad_bias, bool unit) -> ()")
                    .c_str());
  }
}

STABLE_TORCH_LIBRARY_IMPL(variate, CPU, library) {
  library.impl("linear_bernoulli_nll", TORCH_BOX(&forward<variate_linear_bernoulli_nll>));
  library.impl("linear_bernoulli_nll_residual", TORCH_BOX(&residual<variate_linear_bernoulli_nll>));
  library.impl("linear_categorical_nll_residual", TORCH_BOX(&residual<variate_linear_categorical_nll>));
  library.impl("linear_bernoulli_nll_backward", TORCH_BOX(&backward<variate_linear_bernoulli_nll>));
  library.impl("linear_categorical_nll", TORCH_BOX(&forward<variate_linear_categorical_nll>));
  library.impl("linear_categorical_nll_backward", TORCH_BOX(&backward<variate_linear_categorical_nll>));
}

}  // namespace variate::torch_ops
