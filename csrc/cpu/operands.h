// The tensors of a kernel, tile by tile.
#pragma once

#include "tile.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

// A tile of an input; one that is left out is `missing` everywhere.
template <class T>
struct Input {
  Buffer<T> buffer;
  const T* data;

  Input(const variate_tensor& tensor, const Tile& t, T missing = T(0)) {
    data = tensor.data ? load(tensor, t, buffer) : buffer.data;
    for (int64_t i = 0; !tensor.data && i < t.count; ++i) buffer.data[i] = missing;
  }
};

// A tile of the gradient of a result: of its sums by row, or of each term.
template <class T>
struct ResultGradient {
  Buffer<T> buffer;
  const T* data;

  ResultGradient(const variate_tensor& tensor, const Tile& t, bool elementwise) {
    data = elementwise ? load(tensor, t, buffer) : load_rows(tensor, t, buffer);
  }
};

// A tile of an output that may be left out: written to `data`, then stored.
template <class T>
struct Output {
  const variate_tensor& tensor;
  const Tile& tile;
  Buffer<T> buffer;
  T* data;

  Output(const variate_tensor& tensor, const Tile& t) : tensor(tensor), tile(t) {
    data = optional_target(tensor, t, buffer);
  }
  void store() const { VARIATE_ISA::store(tensor, tile, static_cast<const T*>(data)); }
};

}  // namespace

}  // namespace variate::cpu::VARIATE_ISA
