// How a kernel reads and writes a tensor: four consecutive columns of a row at a time, which is one Philox counter.
//
// Two accessors share one interface, so that each kernel is written once. Dense<T> has 16-byte accesses (8 for 16-bit
// types, 4 for bytes); Strided<M> takes any dtype and strides at run time and does math in M.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <variate/core.h>

#include <cstdint>
#include <type_traits>

namespace variate::cuda {

template <class T>
struct Quad {
  T x[4];
};

template <class To, class From>
__device__ __forceinline__ To convert(From x) {
  if constexpr (std::is_same_v<From, __nv_bfloat16>) {
    return static_cast<To>(__bfloat162float(x));
  } else if constexpr (std::is_same_v<From, __half>) {
    return static_cast<To>(__half2float(x));
  } else if constexpr (std::is_same_v<To, __nv_bfloat16>) {
    return __float2bfloat16_rn(static_cast<float>(x));
  } else if constexpr (std::is_same_v<To, __half>) {
    return __float2half_rn(static_cast<float>(x));
  } else if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>) {
    return x != x ? To(0) : static_cast<To>(x);
  } else {
    return static_cast<To>(x);
  }
}

template <class T>
inline constexpr variate_dtype dtype_of = VARIATE_FLOAT32;
template <>
inline constexpr variate_dtype dtype_of<__nv_bfloat16> = VARIATE_BFLOAT16;
template <>
inline constexpr variate_dtype dtype_of<__half> = VARIATE_FLOAT16;
template <>
inline constexpr variate_dtype dtype_of<uint8_t> = VARIATE_UINT8;
template <>
inline constexpr variate_dtype dtype_of<int64_t> = VARIATE_INT64;

// One machine access of this many bytes.
template <int bytes>
struct Vector;
template <>
struct Vector<4> {
  using type = uint32_t;
};
template <>
struct Vector<8> {
  using type = uint2;
};
template <>
struct Vector<16> {
  using type = uint4;
};

template <class T>
struct Dense {
  static constexpr bool dense = true;
  static constexpr int quad_bytes = 4 * sizeof(T);
  static constexpr int access_bytes = quad_bytes < 16 ? quad_bytes : 16;
  static constexpr int accesses = quad_bytes / access_bytes;
  using Math = std::conditional_t<std::is_same_v<T, int64_t>, int64_t, float>;
  using Access = typename Vector<access_bytes>::type;

  struct Raw {
    Access part[accesses];
  };
  struct Elements {
    T x[4];
  };

  T* data;
  int64_t row_stride;

  explicit Dense(const variate_tensor& tensor) : data(static_cast<T*>(tensor.data)), row_stride(tensor.row_stride) {}

  // Whether this accessor may stand for `tensor`; one that is left out suits every accessor.
  static bool fits(const variate_tensor& tensor, int64_t rows) {
    if (!tensor.data) return true;
    return tensor.dtype == dtype_of<T> && tensor.col_stride == 1 && (rows == 1 || tensor.row_stride % 4 == 0) &&
           reinterpret_cast<uintptr_t>(tensor.data) % access_bytes == 0;
  }

  __device__ __forceinline__ bool present() const { return data != nullptr; }

  // Loads only: several of these are in flight before the first unpack waits. `count` is 4, or less at a row's end.
  __device__ __forceinline__ Raw fetch(int64_t row, int64_t quad, int count) const {
    const T* from = data + (row * row_stride + 4 * quad);
    Raw raw{};
    if (count == 4) {
#pragma unroll
      for (int i = 0; i < accesses; ++i) raw.part[i] = __ldg(reinterpret_cast<const Access*>(from) + i);
    } else {
      Elements elements = __builtin_bit_cast(Elements, raw);
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        if (i < count) elements.x[i] = from[i];
      }
      raw = __builtin_bit_cast(Raw, elements);
    }
    return raw;
  }

  __device__ __forceinline__ static Quad<Math> unpack(const Raw& raw) {
    const Elements elements = __builtin_bit_cast(Elements, raw);
    Quad<Math> quad;
#pragma unroll
    for (int i = 0; i < 4; ++i) quad.x[i] = convert<Math>(elements.x[i]);
    return quad;
  }

  __device__ __forceinline__ void store(int64_t row, int64_t quad, int count, const Quad<Math>& values) const {
    T* to = data + (row * row_stride + 4 * quad);
    Elements elements;
#pragma unroll
    for (int i = 0; i < 4; ++i) elements.x[i] = convert<T>(values.x[i]);
    if (count == 4) {
      const Raw raw = __builtin_bit_cast(Raw, elements);
#pragma unroll
      for (int i = 0; i < accesses; ++i) reinterpret_cast<Access*>(to)[i] = raw.part[i];
    } else {
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        if (i < count) to[i] = elements.x[i];
      }
    }
  }
};

template <class M>
struct Strided {
  static constexpr bool dense = false;
  using Math = M;
  using Raw = Quad<M>;

  variate_tensor tensor;

  __host__ __device__ explicit Strided(const variate_tensor& tensor) : tensor(tensor) {}

  static bool fits(const variate_tensor&, int64_t) { return true; }

  __device__ __forceinline__ bool present() const { return tensor.data != nullptr; }

  __device__ __forceinline__ Raw fetch(int64_t row, int64_t quad, int count) const {
    const int64_t at = row * tensor.row_stride + 4 * quad * tensor.col_stride;
    switch (tensor.dtype) {
      case VARIATE_FLOAT32: return load<float>(at, count);
      case VARIATE_FLOAT64: return load<double>(at, count);
      case VARIATE_BFLOAT16: return load<__nv_bfloat16>(at, count);
      case VARIATE_FLOAT16: return load<__half>(at, count);
      case VARIATE_UINT8: return load<uint8_t>(at, count);
      case VARIATE_INT64: return load<int64_t>(at, count);
    }
    return {};
  }

  __device__ __forceinline__ static Quad<M> unpack(const Raw& raw) { return raw; }

  __device__ __forceinline__ void store(int64_t row, int64_t quad, int count, const Quad<M>& values) const {
    const int64_t at = row * tensor.row_stride + 4 * quad * tensor.col_stride;
    switch (tensor.dtype) {
      case VARIATE_FLOAT32: return save<float>(at, count, values);
      case VARIATE_FLOAT64: return save<double>(at, count, values);
      case VARIATE_BFLOAT16: return save<__nv_bfloat16>(at, count, values);
      case VARIATE_FLOAT16: return save<__half>(at, count, values);
      case VARIATE_UINT8: return save<uint8_t>(at, count, values);
      case VARIATE_INT64: return save<int64_t>(at, count, values);
    }
  }

 private:
  template <class T>
  __device__ __forceinline__ Quad<M> load(int64_t at, int count) const {
    const T* from = static_cast<const T*>(tensor.data) + at;
    Quad<M> quad{};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) quad.x[i] = convert<M>(from[i * tensor.col_stride]);
    }
    return quad;
  }

  template <class T>
  __device__ __forceinline__ void save(int64_t at, int count, const Quad<M>& values) const {
    T* to = static_cast<T*>(tensor.data) + at;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) to[i * tensor.col_stride] = convert<T>(values.x[i]);
    }
  }
};

// A tensor that may be left out, and is then 0.
template <class Tensor>
__device__ __forceinline__ typename Tensor::Raw fetch_or_zero(const Tensor& tensor, int64_t row, int64_t quad,
                                                              int count) {
  if (!tensor.present()) return {};
  return tensor.fetch(row, quad, count);
}

// One number per row, of any floating dtype: a sum over the row, its gradient, or a scalar.
template <class M>
__device__ __forceinline__ M load_row(const variate_tensor& tensor, int64_t row) {
  if (!tensor.data) return M(0);
  const int64_t at = row * tensor.row_stride;
  switch (tensor.dtype) {
    case VARIATE_FLOAT64: return convert<M>(__ldg(static_cast<const double*>(tensor.data) + at));
    case VARIATE_BFLOAT16: return convert<M>(static_cast<const __nv_bfloat16*>(tensor.data)[at]);
    case VARIATE_FLOAT16: return convert<M>(static_cast<const __half*>(tensor.data)[at]);
    default: return convert<M>(__ldg(static_cast<const float*>(tensor.data) + at));
  }
}

template <class M>
__device__ __forceinline__ void store_row(const variate_tensor& tensor, int64_t row, M value) {
  if (tensor.dtype == VARIATE_FLOAT64) {
    static_cast<double*>(tensor.data)[row * tensor.row_stride] = value;
  } else {
    static_cast<float*>(tensor.data)[row * tensor.row_stride] = static_cast<float>(value);
  }
}

// The threshold of a call: a number on the device, or a plain one.
struct FreeBits {
  variate_tensor tensor;
  double value;

  template <class M>
  __device__ __forceinline__ M load() const {
    return tensor.data ? load_row<M>(tensor, 0) : static_cast<M>(value);
  }
};

// The gradient of a result: one number per row, or one per element.
struct ResultGradient {
  variate_tensor tensor;
  bool elementwise;

  template <class M>
  __device__ __forceinline__ Quad<M> load(int64_t row, int64_t quad, int count) const {
    if (elementwise) return Strided<M>(tensor).fetch(row, quad, count);
    const M value = load_row<M>(tensor, row);
    return {{value, value, value, value}};
  }
};

// Whether `Accessor` suits every tensor of a call.
template <class Accessor, class... Tensors>
bool fits(int64_t rows, const Tensors&... tensors) {
  return (Accessor::fits(tensors, rows) && ...);
}

}  // namespace variate::cuda
