// What the CUDA kernels of lattices do to a word of 32 sites, on the host against a site at a time.
#include <variate/math/lattice.hpp>

#include <cmath>
#include <cstdlib>
#include <initializer_list>
#include <vector>

#include "check.hpp"

using namespace variate::math;

namespace {

std::uint64_t random_state = 1;

std::uint32_t random_word() {
  const Words w = philox(0x5eed, static_cast<std::uint32_t>(random_state++), 0, 0, 0);
  return w.w[0];
}

struct Shape {
  int dimensions;
  int depth, height, width;
  bool open;
};

// Sites one by one, as bytes, and packed.
struct Lattice {
  Shape s;
  int words;
  std::vector<int> spins;  // 0 or 1
  std::vector<WordGroup<4>> memory;

  explicit Lattice(const Shape& shape) : s(shape), words(static_cast<int>(words_in_row(s.width))) {
    spins.resize(static_cast<std::size_t>(s.depth * s.height * s.width));
    for (int& x : spins) x = static_cast<int>(random_word() >> 31);
    memory.resize(static_cast<std::size_t>(2 * s.depth * s.height * words + 3) / 4);
    for (int z = 0; z < s.depth; ++z) {
      for (int y = 0; y < s.height; ++y) {
        for (int x = 0; x < s.width; ++x) {
          packed((x + y + z) & 1)[(z * s.height + y) * words + x / 64] |= static_cast<std::uint32_t>(at(z, y, x))
                                                                          << x / 2 % 32;
        }
      }
    }
  }

  int& at(int z, int y, int x) { return spins[static_cast<std::size_t>((z * s.height + y) * s.width + x)]; }
  std::uint32_t* packed(int colour) { return memory[0].w + colour * s.depth * s.height * words; }

  // The spin of the neighbour in a direction (z, y, x: before, behind), or -1 beyond an open boundary.
  int neighbour(int z, int y, int x, int direction) {
    const int axis = direction / 2 + (s.dimensions == 2), sign = direction % 2 ? 1 : -1;
    int place[3] = {z, y, x};
    const int side[3] = {s.depth, s.height, s.width};
    place[axis] += sign;
    if (place[axis] < 0 || place[axis] >= side[axis]) {
      if (s.open) return -1;
      place[axis] = (place[axis] + side[axis]) % side[axis];
    }
    return at(place[0], place[1], place[2]);
  }
};

const Shape shapes[] = {
    {2, 1, 4, 2, false},  {2, 1, 2, 2, false},   {2, 1, 6, 10, false},  {2, 1, 4, 62, false},  {2, 1, 4, 64, false},
    {2, 1, 4, 66, false}, {2, 1, 6, 130, false}, {2, 1, 4, 250, false}, {2, 1, 4, 256, false}, {3, 2, 4, 6, false},
    {3, 4, 2, 66, false}, {3, 2, 2, 512, false}, {2, 1, 1, 1, true},    {2, 1, 1, 9, true},    {2, 1, 5, 1, true},
    {2, 1, 3, 64, true},  {2, 1, 3, 65, true},   {2, 1, 4, 66, true},   {2, 1, 2, 127, true},  {2, 1, 2, 129, true},
    {2, 1, 2, 250, true}, {3, 1, 1, 1, true},    {3, 3, 3, 3, true},    {3, 1, 4, 67, true},   {3, 3, 2, 256, true},
};

template <int dimensions, int u>
void check_neighbours(const Shape& shape) {
  Lattice lattice(shape);
  const WordGrid grid = word_grid(shape.depth, shape.height, shape.width, shape.open, u);
  CHECK(static_cast<int>(grid.words) == lattice.words);
  for (int colour = 0; colour < 2; ++colour) {
    std::vector<int> seen(lattice.spins.size());
    for (std::uint32_t group = 0; group < grid.size / u; ++group) {
      const WordPlace at = word_place<u>(grid, group, colour);
      const auto ordered = neighbours<dimensions, true, u>(grid, at, lattice.packed(1 - colour));
      const auto sums = neighbours<dimensions, false, u>(grid, at, lattice.packed(1 - colour));
      const int z = static_cast<int>(at.z), y = static_cast<int>(at.y);
      CHECK(at.index == (at.z * grid.height + at.y) * grid.words + at.word);
      for (int i = 0; i < u; ++i) {
        std::uint32_t present[2 * dimensions], x_sum[2 * dimensions];
        const Missing missing = missing_neighbours<dimensions>(grid, at, i, present);
        for (int d = 0; d < 2 * dimensions; ++d) x_sum[d] = sums.of[d].w[i];
        const auto count = count_bits(x_sum);
        const std::uint32_t valid = valid_sites(grid, at.parity, at.word + i);
        for (int bit = 0; bit < 32; ++bit) {
          const int x = 2 * (32 * static_cast<int>(at.word + i) + bit) + static_cast<int>(at.parity);
          CHECK((valid >> bit & 1) == (x < shape.width), "width %d, x %d", shape.width, x);
          if (x >= shape.width) continue;
          ++seen[static_cast<std::size_t>((z * shape.height + y) * shape.width + x)];
          const bool of_colour = (x + y + z) % 2 == colour;
          CHECK(of_colour);
          int up = 0, gone = 0;
          for (int d = 0; d < 2 * dimensions; ++d) {
            const int spin = lattice.neighbour(z, y, x, d);
            up += spin > 0;
            gone += spin < 0;
            CHECK((present[d] >> bit & 1) == (spin >= 0), "%dx%dx%d, x %d y %d z %d direction %d", shape.depth,
                  shape.height, shape.width, x, y, z, d);
            CHECK(static_cast<int>(ordered.of[d].w[i] >> bit & 1) == (spin > 0),
                  "%dx%dx%d, x %d y %d z %d direction %d", shape.depth, shape.height, shape.width, x, y, z, d);
          }
          CHECK(static_cast<int>(count_at(count, bit)) == up, "%dx%dx%d, x %d y %d z %d", shape.depth, shape.height,
                shape.width, x, y, z);
          CHECK(static_cast<int>(missing.count + (missing.edge >> bit & 1)) == gone, "%dx%dx%d, x %d y %d z %d",
                shape.depth, shape.height, shape.width, x, y, z);
        }
      }
    }
    for (std::size_t site = 0; site < seen.size(); ++site) {
      const int x = static_cast<int>(site) % shape.width, row = static_cast<int>(site) / shape.width;
      const bool of_colour = (x + row % shape.height + row / shape.height) % 2 == colour;
      CHECK(seen[site] == of_colour);
    }
  }
}

void test_neighbours() {
  for (const Shape& shape : shapes) {
    shape.dimensions == 2 ? check_neighbours<2, 1>(shape) : check_neighbours<3, 1>(shape);
    if (words_in_row(shape.width) % 4 == 0) {
      shape.dimensions == 2 ? check_neighbours<2, 4>(shape) : check_neighbours<3, 4>(shape);
    }
  }
}

// A word of sites against comparisons of 40-bit numbers, undecided sites included.
template <int neighbours>
void check_draws(double beta, double coupling, double field, int missing) {
  HeatBath bath{};
  for (int n = 0; n < 7; ++n) bath.threshold[n] = threshold_of(beta, coupling, field, n, neighbours - missing);
  for (int p = 0; p <= plane_count; ++p) set_digit(bath, p);
  for (int round = 0; round < 200; ++round) {
    std::uint32_t x[neighbours], planes[plane_count];
    for (int d = 0; d < neighbours; ++d) x[d] = d < neighbours - missing ? random_word() : 0;
    for (std::uint32_t& plane : planes) plane = random_word();
    const auto count = count_bits(x);
    if (round % 2) {  // the digits of the thresholds themselves: all undecided
      for (int p = 0; p < plane_count; ++p) planes[p] = evaluate<neighbours>(bath.digit[p], count);
    }
    Draw<std::uint32_t> draw;
    for (int p = plane_count - 1; p >= 0; --p) {
      compare_digit(draw, planes[p], evaluate<neighbours>(bath.digit[p], count));
    }
    const std::uint32_t certain = evaluate<neighbours>(bath.digit[plane_count], count);
    CHECK(certain == 0 || bath.any_certain != 0);
    for (int bit = 0; bit < 32; ++bit) {
      int up = 0;
      std::uint64_t uniform = 0;
      for (std::uint32_t word : x) up += static_cast<int>(word >> bit & 1);
      for (std::uint32_t plane : planes) uniform = 2 * uniform + (plane >> bit & 1);
      const std::uint64_t threshold = bath.threshold[up];
      const bool is_certain = threshold >> threshold_bits;
      const std::uint64_t high = threshold >> 32;
      CHECK((certain >> bit & 1) == is_certain);
      if (is_certain) continue;
      CHECK((draw.up >> bit & 1) == (uniform < high), "%g %g %g: up %d, uniform %llx, threshold %llx", beta, coupling,
            field, up, static_cast<unsigned long long>(uniform), static_cast<unsigned long long>(threshold));
      CHECK((draw.undecided >> bit & 1) == (uniform == high));
    }
  }
}

void test_draws() {
  const double infinity = INFINITY;
  for (double beta : {0.0, 0.1, 0.44, 1.0, 30.0, -0.7}) {
    for (double field : {0.0, 0.3, -2.0, infinity, -infinity}) {
      for (int missing = 0; missing < 7; ++missing) {
        if (missing < 5) check_draws<4>(beta, 1.0, field, missing);
        check_draws<6>(beta, -0.8, field, missing);
      }
    }
  }
}

void test_thresholds() {
  for (int n = 0; n <= 4; ++n) {
    const double x = 2.0 * 0.44 * (2 * n - 4 + 0.1);
    const double expected = std::ldexp(1.0 / (1.0 + std::exp(-x)), 40);
    const double got = static_cast<double>(threshold_of(0.44, 1.0, 0.1, n, 4));
    CHECK(std::abs(got - expected) <= 1.001, "%d: %f, not %f", n, got, expected);
  }
  CHECK(threshold_of(1.0, 1.0, INFINITY, 0, 4) == std::uint64_t{1} << 40);
  CHECK(threshold_of(1.0, 1.0, -INFINITY, 4, 4) == 0);
  CHECK(threshold_of(1.0, 1.0, 0.0, 5, 4) == 0);
  CHECK(threshold_of(1.0, 1.0, 0.0, 1, 2) == std::uint64_t{1} << 39);
}

void test_divider() {
  for (std::uint32_t by : {1u, 2u, 3u, 4u, 5u, 7u, 64u, 100u, 641u, 65535u, 65536u, 1u << 30, (1u << 31) - 1}) {
    const Divider d = divider(by);
    for (int i = 0; i < 5000; ++i) {
      const std::uint32_t n = random_word() >> (1 + i % 31);
      CHECK(divide(n, d) == n / by, "%u / %u", n, by);
    }
    for (std::uint32_t k = 0; k < 50; ++k) {
      const std::uint64_t multiple = static_cast<std::uint64_t>(by) * k;
      for (std::uint64_t n : {multiple, multiple + by - 1}) {
        if (n < std::uint64_t{1} << 31) CHECK(divide(static_cast<std::uint32_t>(n), d) == n / by);
      }
    }
    CHECK(divide((1u << 31) - 1, d) == ((1u << 31) - 1) / by);
  }
}

void test_rings() {
  for (std::uint32_t count : {1u, 2u, 5u, 31u, 32u, 33u, 63u, 64u, 70u}) {
    std::vector<std::uint32_t> row((count + 31) / 32);
    for (std::uint32_t i = 0; i < count; ++i) row[i / 32] |= (random_word() >> 31) << i % 32;
    for (std::uint32_t start = 0; start < count; ++start) {
      const std::uint32_t word = ring_word(row.data(), count, start);
      for (std::uint32_t bit = 0; bit < 32; ++bit) {
        const std::uint32_t at = (start + bit) % count;
        const std::uint32_t expected = row[at / 32] >> at % 32 & 1;
        CHECK((word >> bit & 1) == expected, "%u bits from %u, bit %u", count, start, bit);
      }
    }
  }
}

}  // namespace

int main() {
  test_neighbours();
  test_draws();
  test_thresholds();
  test_divider();
  test_rings();
  return check::finish();
}
