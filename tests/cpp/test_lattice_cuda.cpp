// The CUDA kernels of lattices, emulated, against the library's CPU kernels: bit for bit.
#include "../../csrc/cuda/lattice.cu"

#include <cmath>
#include <vector>

#include "check.hpp"

void variate::set_error(const char*, ...) {}

namespace {

using variate::math::words_in_row;
namespace cuda = variate::cuda;

std::uint32_t random_word() {
  static std::uint32_t counter = 0;
  return variate::math::philox(7, counter++, 0, 0, 0).w[0];
}

// What decides how a call is cut into launches.
enum Regime { in_shared_memory, many_multiprocessors, by_colours, unaligned, regimes };

struct Case {
  int dimensions;
  int64_t depth, height, width;
  bool open;
  int64_t chains;
};

const Case cases[] = {
    {2, 1, 2, 2, false, 150}, {2, 1, 16, 16, false, 70}, {2, 1, 6, 62, false, 5},  {2, 1, 4, 66, false, 5},
    {2, 1, 8, 130, false, 3}, {2, 1, 8, 250, false, 4},  {2, 1, 8, 256, false, 4}, {2, 1, 256, 256, false, 2},
    {3, 2, 2, 2, false, 9},   {3, 4, 6, 8, false, 7},    {3, 4, 2, 66, false, 2},  {3, 2, 4, 256, false, 3},
    {2, 1, 2, 2, true, 5},    {2, 1, 3, 3, true, 40},    {2, 1, 5, 64, true, 3},   {2, 1, 3, 65, true, 3},
    {2, 1, 7, 127, true, 2},  {2, 1, 3, 250, true, 2},   {3, 2, 2, 2, true, 6},    {3, 3, 5, 7, true, 20},
    {3, 2, 3, 129, true, 2},
};

template <class T>
bool equal(const T* a, const T* b, int64_t count) {
  return std::memcmp(a, b, static_cast<std::size_t>(count) * sizeof(T)) == 0;
}

template <class Args>
Args args_of(const variate_lattice& lattice, int64_t chains) {
  Args args{};
  args.struct_size = sizeof args;
  args.lattice = lattice;
  args.chains = chains;
  return args;
}

void check_case(const Case& c, Regime regime, bool bonded) {
  emulated::multiprocessors = regime == many_multiprocessors ? 200 : 2;
  emulated::shared_bytes = regime == by_colours ? 1024 : 227 * 1024;
  const int64_t shift = regime == unaligned ? 1 : 0;
  const variate_lattice lattice = {c.dimensions, c.open ? VARIATE_OPEN : VARIATE_PERIODIC, c.depth, c.height, c.width};
  const int64_t sites = c.depth * c.height * c.width;
  const int64_t words = 2 * c.depth * c.height * words_in_row(c.width);
  const auto fails = [&](const char* what) {
    CHECK(false, "%s: %lldx%lldx%lld, boundary %d, regime %d, bonds %d", what, static_cast<long long>(c.depth),
          static_cast<long long>(c.height), static_cast<long long>(c.width), c.open, regime, bonded);
  };
  const auto sized = [&](int64_t count) { return static_cast<std::size_t>(count + shift); };

  std::vector<int8_t> spins(sized(c.chains * sites)), unpacked(spins.size()), expected_spins(spins.size());
  for (int8_t& spin : spins) spin = random_word() >> 31 ? 1 : -1;
  std::vector<std::uint32_t> expected(sized(c.chains * words)), actual(expected.size());
  auto pack = args_of<variate_ising_pack_args>(lattice, c.chains);
  pack.spins = spins.data() + shift;
  pack.words = expected.data() + shift;
  CHECK(variate_ising_pack(&pack) == VARIATE_OK);
  pack.words = actual.data() + shift;
  CHECK(cuda::ising_pack(pack) == VARIATE_OK);
  if (!equal(expected.data() + shift, actual.data() + shift, c.chains * words)) fails("pack");

  std::vector<std::uint32_t> bonds(static_cast<std::size_t>(2 * c.dimensions * words));
  for (std::uint32_t& word : bonds) word = random_word();
  // Keys, and numbers of which some are the same for all chains, and some leave nothing to chance.
  std::vector<int64_t> key(static_cast<std::size_t>(2 * c.chains));
  for (int64_t& k : key) k = static_cast<int64_t>(random_word()) << 32 | random_word();
  key[1] = -3;  // its counters pass 2^64
  std::vector<double> beta(static_cast<std::size_t>(c.chains)), field(beta.size());
  double coupling = bonded ? 1.0 : -0.9;
  for (std::size_t i = 0; i < beta.size(); ++i) {
    beta[i] = i % 7 == 6 ? 60.0 : 0.2 + 0.05 * static_cast<double>(i % 13);
    field[i] = i % 4 == 3 ? INFINITY : 0.1 * static_cast<double>(i % 4);
  }
  std::vector<double> expected_moments(static_cast<std::size_t>(c.chains * VARIATE_ISING_MOMENTS), 0.5);
  std::vector<double> moments = expected_moments;
  auto gibbs = args_of<variate_ising_gibbs_args>(lattice, c.chains);
  gibbs.noise = {key.data(), bonded ? 2 : 0, bonded ? 0 : 1000};
  gibbs.sweeps = 3;
  gibbs.first_step = 0xfffffffe;
  gibbs.beta = {beta.data(), VARIATE_FLOAT64, 1, 0};
  gibbs.coupling = {&coupling, VARIATE_FLOAT64, 0, 0};
  gibbs.field = {field.data(), VARIATE_FLOAT64, 1, 0};
  gibbs.bonds = bonded ? bonds.data() : nullptr;
  gibbs.measure_every = 2;
  gibbs.words = expected.data() + shift;
  gibbs.moments = expected_moments.data();
  std::vector<uint4> workspace(variate_ising_gibbs_workspace(&gibbs) / sizeof(uint4) + 1);
  gibbs.execution.workspace = workspace.data();
  gibbs.execution.workspace_bytes = workspace.size() * sizeof(uint4);
  CHECK(variate_ising_gibbs(&gibbs) == VARIATE_OK);
  std::vector<uint4> device_workspace(cuda::ising_gibbs_workspace(gibbs) / sizeof(uint4) + 1);
  gibbs.execution.workspace = device_workspace.data();
  gibbs.words = actual.data() + shift;
  gibbs.moments = moments.data();
  emulated::launches = 0;
  CHECK(cuda::ising_gibbs(gibbs) == VARIATE_OK);
  if (!equal(expected.data() + shift, actual.data() + shift, c.chains * words)) fails("gibbs");
  if (!equal(expected_moments.data(), moments.data(), c.chains * VARIATE_ISING_MOMENTS)) fails("moments");
  if (regime == in_shared_memory && emulated::launches != 1) fails("one launch");
  if (regime == by_colours && emulated::launches != 1 + 2 * 3 + 2) fails("two launches a sweep");

  auto measure = args_of<variate_ising_measure_args>(lattice, c.chains);
  measure.bonds = gibbs.bonds;
  measure.words = expected.data() + shift;
  measure.distance = std::min<int64_t>(c.width - 1, bonded ? 70 : 3);
  std::vector<int64_t> expected_sums(static_cast<std::size_t>(2 * c.chains)), sums(expected_sums.size());
  std::vector<int64_t> expected_correlation(static_cast<std::size_t>(measure.distance * c.chains));
  std::vector<int64_t> correlation(expected_correlation.size());
  measure.sums = expected_sums.data();
  measure.correlation = expected_correlation.data();
  workspace.resize(variate_ising_measure_workspace(&measure) / sizeof(uint4) + 1);
  measure.execution.workspace = workspace.data();
  measure.execution.workspace_bytes = workspace.size() * sizeof(uint4);
  CHECK(variate_ising_measure(&measure) == VARIATE_OK);
  measure.words = actual.data() + shift;
  measure.sums = sums.data();
  measure.correlation = correlation.data();
  CHECK(cuda::ising_measure(measure) == VARIATE_OK);
  if (sums != expected_sums) fails("sums");
  if (correlation != expected_correlation) fails("correlation");

  pack.words = expected.data() + shift;
  pack.spins = expected_spins.data() + shift;
  CHECK(variate_ising_unpack(&pack) == VARIATE_OK);
  pack.words = actual.data() + shift;
  pack.spins = unpacked.data() + shift;
  CHECK(cuda::ising_unpack(pack) == VARIATE_OK);
  if (unpacked != expected_spins) fails("unpack");
}

}  // namespace

int main() {
  for (const Case& c : cases) {
    for (int regime = 0; regime < regimes; ++regime) {
      check_case(c, static_cast<Regime>(regime), false);
      check_case(c, static_cast<Regime>(regime), true);
    }
  }
  return check::finish();
}
