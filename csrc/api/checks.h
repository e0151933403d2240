// What every entry point checks before a kernel runs. A check that fails leaves its message in variate_last_error().
#pragma once

#include <variate/core.h>

#include <cstdio>

#include "error.h"

namespace variate {

inline bool is_floating(variate_dtype dtype) {
  return dtype == VARIATE_FLOAT32 || dtype == VARIATE_FLOAT64 || dtype == VARIATE_BFLOAT16 || dtype == VARIATE_FLOAT16;
}

inline bool is_float_or_double(variate_dtype dtype) { return dtype == VARIATE_FLOAT32 || dtype == VARIATE_FLOAT64; }
inline bool is_floating_or_uint8(variate_dtype dtype) { return is_floating(dtype) || dtype == VARIATE_UINT8; }
inline bool is_int64(variate_dtype dtype) { return dtype == VARIATE_INT64; }
inline bool is_any(variate_dtype dtype) { return dtype >= VARIATE_FLOAT32 && dtype <= VARIATE_INT64; }

// One call's checks: the first that fails is the one reported.
class Checks {
 public:
  explicit Checks(const char* function) : function_(function) {}

  template <class... Values>
  void require(bool condition, const char* format, Values... values) {
    if (condition || failed_) return;
    failed_ = true;
    char message[400];
    std::snprintf(message, sizeof message, format, values...);
    set_error("%s: %s", function_, message);
  }

  void size(int64_t value, const char* name) {
    require(value >= 0, "%s must be at least 0, got %lld", name, static_cast<long long>(value));
  }

  void tensor(const variate_tensor& tensor, const char* name, bool (*accepts)(variate_dtype)) {
    require(tensor.data != nullptr, "%s is missing", name);
    optional_tensor(tensor, name, accepts);
  }

  void optional_tensor(const variate_tensor& tensor, const char* name, bool (*accepts)(variate_dtype)) {
    require(tensor.data == nullptr || accepts(tensor.dtype), "%s has a dtype this call does not take, got %d", name,
            static_cast<int>(tensor.dtype));
  }

  void parametrization(variate_parametrization value) {
    require(value >= VARIATE_LOG_VAR && value <= VARIATE_SCALE,
            "parametrization must be VARIATE_LOG_VAR, VARIATE_LOG_SCALE or VARIATE_SCALE, got %d",
            static_cast<int>(value));
  }

  void noise(const variate_noise& noise, int64_t rows) {
    require(noise.key != nullptr, "noise.key is missing");
    require(noise.key_stride == 0 || noise.key_stride == 2, "noise.key_stride must be 0 or 2, got %lld",
            static_cast<long long>(noise.key_stride));
    require(noise.first_sample >= 0 && rows <= (int64_t{1} << 32) - noise.first_sample,
            "noise.first_sample must be at least 0, and first_sample + rows at most 2^32, got %lld",
            static_cast<long long>(noise.first_sample));
    require(noise.key_stride == 0 || noise.first_sample == 0,
            "noise.first_sample must be 0 with a key per row, got %lld", static_cast<long long>(noise.first_sample));
  }

  void execution(const variate_execution& execution, uint64_t workspace_bytes) {
    require(execution.device == VARIATE_CPU || execution.device == VARIATE_CUDA,
            "execution.device must be VARIATE_CPU or VARIATE_CUDA, got %d", static_cast<int>(execution.device));
    require(execution.threads >= 0 && execution.threads <= 4096, "execution.threads must lie in [0, 4096], got %d",
            static_cast<int>(execution.threads));
    require(workspace_bytes == 0 || (execution.workspace && execution.workspace_bytes >= workspace_bytes),
            "execution.workspace must hold %llu bytes, got %llu", static_cast<unsigned long long>(workspace_bytes),
            static_cast<unsigned long long>(execution.workspace ? execution.workspace_bytes : 0));
  }

  bool failed() const { return failed_; }

 private:
  const char* function_;
  bool failed_ = false;
};

}  // namespace variate
