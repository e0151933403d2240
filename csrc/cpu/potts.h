// How the states of a lattice lie in the workspace of a sweep.
#pragma once

#include <variate/potts.h>

namespace variate::cpu {

// The sites of one colour of a row stand side by side, one byte each, the rows `pitch` apart. Before the first and
// behind the last stand copies of what periodic boundaries wrap around to, or `nothing`. Loops cover whole vectors.
struct PottsLayout {
  static constexpr int64_t vector = 64;
  static constexpr uint8_t nothing = 255;
  int64_t rows, half, pitch;

  explicit PottsLayout(const variate_lattice& lattice)
      : rows(lattice.depth * lattice.height),
        half((lattice.width + 1) / 2),
        pitch((half + vector - 1) / vector * vector + vector) {}

  int64_t row(int64_t r, int colour) const { return vector + (colour * rows + r) * pitch; }
  int64_t beyond() const { return row(2 * rows, 0); }  // the row beyond an open boundary
  int64_t size() const { return beyond() + pitch; }

  // Lattices at a time.
  static int64_t copies(const variate_potts_gibbs_args& a) {
    const int64_t threads = a.execution.threads > 1 ? a.execution.threads : 1;
    return a.chains < threads ? 1 : threads;
  }
};

}  // namespace variate::cpu
