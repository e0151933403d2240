// The largest error of every elementary function over its whole range, against float64, in ulp of the float32 result.
// The bounds are those that variate/math/elementary.hpp and random.hpp state.
//
//   test_elementary [stride]    every stride-th float32 or word, and all of them where errors peak; 1 takes minutes
#include <variate/math/elbo.hpp>
#include <variate/math/random.hpp>
#include <variate/math/relaxed.hpp>
#include <variate/math/reparam.hpp>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <vector>

#include "check.hpp"

namespace m = variate::math;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr double pi = 3.14159265358979323846;

std::int64_t stride = 521;  // odd, so that every pattern of low bits is met

// The float32 numbers in order: index 0 is 0, 1 the smallest subnormal, negative indices mirror them.
float at_index(std::int64_t index) {
  return index < 0 ? -m::float_of(static_cast<std::uint32_t>(-index)) : m::float_of(static_cast<std::uint32_t>(index));
}

std::int64_t index_of(float x) {
  const auto magnitude = static_cast<std::int64_t>(m::bits_of(x) & 0x7fffffffu);
  return std::signbit(x) ? -magnitude : magnitude;
}

double ulp(double x) {
  const int exponent = std::ilogb(static_cast<float>(x));
  return x == 0.0 || exponent < -126 ? 0x1p-149 : std::ldexp(1.0, exponent - 23);
}

// The worst of many values. A NaN is worse than everything.
struct Worst {
  double error = 0.0;
  double argument = 0.0;

  void take(double candidate, double x) {
    if (candidate <= error || error != error) return;
    error = candidate;
    argument = x;
  }

  void report(const char* name, const char* unit, double bound) const {
    std::printf("%-28s %10.4g %s at %a (bound %g)\n", name, error, unit, argument, bound);
    CHECK(error <= bound, "%s: an error of %g %s at %a, the header states %g", name, error, unit, argument, bound);
  }
};

// Calls body(i) for every stride-th i of [first, last], and for each i near the ends and near `peaks`.
template <class Body>
void sweep(std::int64_t first, std::int64_t last, const std::vector<std::int64_t>& peaks, Body body) {
  constexpr std::int64_t near = 2000;
  const auto dense = [&](std::int64_t from, std::int64_t to) {
    for (std::int64_t i = std::max(from, first); i <= std::min(to, last); ++i) body(i);
  };
  for (std::int64_t i = first; i <= last; i += stride) body(i);
  dense(first, first + near);
  dense(last - near, last);
  for (std::int64_t peak : peaks) dense(peak - near / 4, peak + near / 4);
}

// function(x) against reference(double(x)) for x in [low, high].
template <class Function, class Reference>
void measure(const char* name, float low, float high, double bound, const std::vector<float>& peaks, Function function,
             Reference reference) {
  std::vector<std::int64_t> indices = {0};
  for (float peak : peaks) indices.push_back(index_of(peak));
  Worst worst;
  sweep(index_of(low), index_of(high), indices, [&](std::int64_t i) {
    const float x = at_index(i);
    const double expected = reference(static_cast<double>(x));
    worst.take(std::abs(static_cast<double>(function(x)) - expected) / ulp(expected), x);
  });
  worst.report(name, "ulp", bound);
}

// function(word) against reference((word + 1/2) 2^-32), in ulp, or where |reference| < small in units of `small`'s ulp.
template <class Function, class Reference>
void measure_words(const char* name, double bound, double small, const std::vector<std::int64_t>& peaks,
                   Function function, Reference reference) {
  std::vector<std::int64_t> words = {std::int64_t{1} << 31};
  for (int k = 12; k < 32; ++k) words.push_back(std::int64_t{1} << k);
  words.insert(words.end(), peaks.begin(), peaks.end());
  Worst worst;
  sweep(0, 0xffffffff, words, [&](std::int64_t word) {
    const double expected = reference((static_cast<double>(word) + 0.5) * 0x1p-32);
    const double got = function(static_cast<std::uint32_t>(word));
    worst.take(std::abs(got - expected) / ulp(std::max(std::abs(expected), small)), static_cast<double>(word));
  });
  worst.report(name, "ulp", bound);
}

// Where exp's reduction changes its power of two.
std::vector<float> exponent_ties() {
  std::vector<float> ties;
  for (int n = -151; n <= 128; ++n) ties.push_back(static_cast<float>((n + 0.5) * 0.69314718055994530942));
  return ties;
}

// Where log's does: sqrt(1/2) 2^n.
std::vector<float> root_ties() {
  std::vector<float> ties;
  for (int n = -125; n <= 128; ++n) ties.push_back(static_cast<float>(std::ldexp(0.70710678118654752440, n)));
  for (int n = -125; n <= 127; ++n) ties.push_back(std::ldexp(1.0f, n));
  return ties;
}

// sin and cos of 2 pi u with a reduction that is exact.
struct Angle {
  double sin, cos;
};

Angle angle(double u) {
  const double quarter = std::nearbyint(4.0 * u);
  const double r = 2.0 * pi * (u - 0.25 * quarter);
  const double s = std::sin(r);
  const double c = std::cos(r);
  switch (static_cast<int>(quarter) % 4) {
    case 0: return {s, c};
    case 1: return {c, -s};
    case 2: return {-s, -c};
    default: return {-c, s};
  }
}

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

double sigmoid(double x) {
  const double e = std::exp(-std::abs(x));
  return (x < 0.0 ? e : 1.0) / (1.0 + e);
}

// |function(x) - reference(x)| where the results are too small for a relative bound.
template <class Function, class Reference>
void measure_absolute(const char* name, float low, float high, double bound, Function function, Reference reference) {
  Worst worst;
  sweep(index_of(low), index_of(high), {}, [&](std::int64_t i) {
    const float x = at_index(i);
    worst.take(std::abs(static_cast<double>(function(x)) - reference(static_cast<double>(x))), x);
  });
  worst.report(name, "absolute", bound);
}

void measure_elementary() {
  const std::vector<float> ties = exponent_ties();
  const std::vector<float> eighths = {0.125f, 0.25f, 0.375f, 0.5f, 0.625f, 0.75f, 0.875f};
  const float max = std::numeric_limits<float>::max();
  const auto exp = [](float x) { return m::exp(x); };
  const auto exp_ref = [](double x) { return std::exp(x); };
  measure("exp", -86.6f, 88.7f, 1.1, ties, exp, exp_ref);
  measure_absolute("exp < -86.6", -max, -86.6f, 0x1p-124, exp, exp_ref);
  const auto exp_nonpositive = [](float x) { return m::exp_nonpositive(x); };
  measure("exp_nonpositive", -87.3f, 0.0f, 1.1, ties, exp_nonpositive, exp_ref);
  measure_absolute("exp_nonpositive < -87.3", -max, -87.3f, 0x1p-126, exp_nonpositive, exp_ref);
  measure(
      "expm1", -max, 88.7f, 1.6, ties, [](float x) { return m::exponential(x).expm1; },
      [](double x) { return std::expm1(x); });
  measure(
      "log", 0x1p-126f, max, 0.9, root_ties(), [](float x) { return m::log(x); }, [](double x) { return std::log(x); });
  measure(
      "log1p_unit", 0.0f, 1.0f, 1.5, {}, [](float x) { return m::log1p_unit(x); },
      [](double x) { return std::log1p(x); });
  measure(
      "sin(2 pi u)", 0.0f, 1.0f, 1.7, eighths, [](float u) { return m::sincos_2pi(u).sin; },
      [](double u) { return angle(u).sin; });
  measure(
      "cos(2 pi u)", 0.0f, 1.0f, 1.7, eighths, [](float u) { return m::sincos_2pi(u).cos; },
      [](double u) { return angle(u).cos; });
  const auto softplus_of = [](float x) { return m::softplus(x); };
  const auto sigmoid_of = [](float x) { return m::sigmoid(x); };
  measure("softplus", -87.3f, max, 2.1, ties, softplus_of, softplus);
  measure(
      "sigmoid_slope", -86.0f, 86.0f, 4.6, ties, [](float x) { return m::sigmoid_slope(x); },
      [](double x) { return sigmoid(x) * sigmoid(-x); });
  measure("sigmoid", -87.3f, max, 2.5, ties, sigmoid_of, sigmoid);
  measure_absolute("softplus < -87.3", -max, -87.3f, 0x1p-126, softplus_of, softplus);
  measure_absolute("sigmoid < -87.3", -max, -87.3f, 0x1p-126, sigmoid_of, sigmoid);
}

void measure_draws() {
  const auto word_of = [](double u) { return static_cast<std::int64_t>(u * 0x1p32); };
  const auto uniform_ref = [](double u) { return u; };
  measure_words("uniform", 0.8, 0.0, {}, [](std::uint32_t w) { return m::uniform(w); }, uniform_ref);
  const std::vector<std::int64_t> roots = {word_of(std::sqrt(0.5)), word_of(1.0 - std::sqrt(0.5)), word_of(0.25)};
  measure_words(
      "exponential_draw", 1.7, 0.0, roots, [](std::uint32_t w) { return m::exponential_draw(w); },
      [](double u) { return u < 0.5 ? -std::log(u) : -std::log1p(-(1.0 - u)); });
  const auto gumbel = [](double u) { return -std::log(u < 0.5 ? -std::log(u) : -std::log1p(-(1.0 - u))); };
  const std::vector<std::int64_t> zero = {word_of(std::exp(-1.0)), word_of(std::exp(-std::sqrt(0.5)))};
  measure_words("gumbel", 1.8, 1.0, zero, [](std::uint32_t w) { return m::gumbel(w); }, gumbel);
  const auto logistic = [](double u) {
    return u < 0.5 ? std::log(u) - std::log1p(-u) : std::log1p(u - 1.0) - std::log(1.0 - u);
  };
  measure_words("logistic", 2.2, 1.0, roots, [](std::uint32_t w) { return m::logistic(w); }, logistic);
  const auto laplace = [](double u) {
    const double lower = u < 0.5 ? u : 1.0 - u;
    const double magnitude = lower < 0.25 ? -std::log(2.0 * lower) : -std::log1p(-(1.0 - 2.0 * lower));
    return u < 0.5 ? -magnitude : magnitude;
  };
  std::vector<std::int64_t> halves;  // the same places of the uniform 2 u
  for (std::int64_t root : roots) halves.insert(halves.end(), {root / 2, 0xffffffff - root / 2});
  measure_words("laplace", 1.7, 0.0, halves, [](std::uint32_t w) { return m::laplace(w); }, laplace);

  // With a second uniform of 1 the cosine is 1 and the first normal is the radius itself.
  measure_words(
      "normal_pair, radius", 1.0, 0.0, roots, [](std::uint32_t w) { return m::normal_pair(w, 0xffffffffu).cos_part; },
      [](double u) {
        return std::sqrt(-2.0 * std::log(static_cast<double>(m::uniform(static_cast<std::uint32_t>(u * 0x1p32)))));
      });
}

// Pairs against Box-Muller in float64 on the same float32 uniforms.
void measure_normals() {
  Worst worst;
  const std::uint64_t pairs = (std::uint64_t{1} << 32) / static_cast<std::uint64_t>(stride);
  for (std::uint64_t k = 0; k < pairs; ++k) {
    m::Words words = m::philox(1, static_cast<std::uint32_t>(k), 0, 0, 0);
    if (k % 4 == 0) words.w[0] |= 0xffff0000u;                                                      // small radii
    if (k % 4 == 1) words.w[0] >>= 16;                                                              // the tail
    if (k % 4 == 2) words.w[1] = (words.w[1] & 0xe000ffffu) + (words.w[1] & 1 ? 0u : 0xffff0000u);  // near axes
    const double radius = std::sqrt(-2.0 * std::log(static_cast<double>(m::uniform(words.w[0]))));
    const Angle a = angle(m::uniform(words.w[1]));
    const m::NormalPair pair = m::normal_pair(words.w[0], words.w[1]);
    worst.take(std::abs(pair.cos_part - radius * a.cos) / ulp(radius * a.cos), static_cast<double>(k));
    worst.take(std::abs(pair.sin_part - radius * a.sin) / ulp(radius * a.sin), static_cast<double>(k));
  }
  worst.report("normal_pair", "ulp", 3.5);
  // The extremes: word 0 gives the largest radius, the last word none.
  CHECK(m::normal_pair(0, 0xffffffffu).cos_part == static_cast<float>(std::sqrt(66.0 * std::log(2.0))));
  CHECK(m::normal_pair(0xffffffffu, 0).cos_part == 0.0f);
}

bool is_nan(float x) { return x != x; }
bool same(float a, float b) { return m::bits_of(a) == m::bits_of(b); }

void test_special_values() {
  for (float nan : {not_a_number, -not_a_number, m::float_of(0x7fffffffu), m::float_of(0xff800001u)}) {
    CHECK(is_nan(m::exp(nan)) && is_nan(m::exponential(nan).expm1) && is_nan(m::exp_nonpositive(nan)));
    CHECK(is_nan(m::log1p_unit(nan)) && is_nan(m::softplus(nan)) && is_nan(m::sigmoid(nan)));
    CHECK(is_nan(m::sincos_2pi(nan).sin) && is_nan(m::sincos_2pi(nan).cos));
    CHECK(is_nan(m::bernoulli_nll(nan, 0.0f)) && is_nan(m::bernoulli_nll(1.0f, nan)));
    CHECK(is_nan(m::standard_normal_kl(nan, 0.0f, 0.0f)) && is_nan(m::spread(nan).sigma));
    CHECK(is_nan(m::spread(nan).variance_minus_1));
    CHECK(is_nan(m::apply_free_bits(nan, 1.0f)));
  }
  CHECK(m::exp(infinity) == infinity && same(m::exp(-infinity), 0.0f));
  CHECK(m::exp(89.0f) == infinity && same(m::exp(-104.0f), 0.0f));
  CHECK(m::exp(std::numeric_limits<float>::max()) == infinity);
  CHECK(m::exponential(infinity).expm1 == infinity && m::exponential(-infinity).expm1 == -1.0f);
  CHECK(m::softplus(infinity) == infinity && same(m::softplus(-infinity), 0.0f));
  CHECK(m::sigmoid(infinity) == 1.0f && same(m::sigmoid(-infinity), 0.0f));
  for (float zero : {0.0f, -0.0f, 0x1p-149f, -0x1p-149f, 0x1p-126f}) {
    CHECK(m::exp(zero) == 1.0f && m::log1p_unit(zero) == zero);
    CHECK(m::sigmoid(zero) == 0.5f && m::softplus(zero) == static_cast<float>(std::log(2.0)));
  }
  CHECK(m::exponential(0.0f).expm1 == 0.0f && m::exponential(-0.0f).expm1 == 0.0f);
  CHECK(m::log(1.0f) == 0.0f);
  CHECK(m::sincos_2pi(0.0f).sin == 0.0f && m::sincos_2pi(0.5f).sin == 0.0f && m::sincos_2pi(1.0f).sin == 0.0f);
  CHECK(m::sincos_2pi(0.25f).cos == 0.0f && m::sincos_2pi(0.75f).cos == 0.0f);
  CHECK(m::sincos_2pi(0.0f).cos == 1.0f && m::sincos_2pi(0.5f).cos == -1.0f && m::sincos_2pi(1.0f).cos == 1.0f);
  // An infinite logit that is right costs nothing; one that is wrong, everything.
  CHECK(m::bernoulli_nll(infinity, 1.0f) == 0.0f && m::bernoulli_nll(-infinity, 0.0f) == 0.0f);
  CHECK(m::bernoulli_nll(infinity, 0.0f) == infinity && m::bernoulli_nll(-infinity, 1.0f) == infinity);
  // Neither infinite scores nor tiny temperatures make a NaN.
  CHECK(m::below_best(infinity, infinity) == 0.0f && m::below_best(-infinity, -infinity) == 0.0f);
  CHECK(m::below_best(-infinity, 1.0f) == -infinity && is_nan(m::below_best(not_a_number, 1.0f)));
  CHECK(m::inverse_temperature<float>(0x1p-149) == std::numeric_limits<float>::max());
  CHECK(m::inverse_temperature<double>(0x1p-1074) == std::numeric_limits<double>::max());
  CHECK(m::inverse_temperature<float>(4.0) == 0.25f && is_nan(m::one_if_positive(not_a_number)));
  CHECK(m::one_if_positive(infinity) == 1.0f && same(m::one_if_positive(0.0f), 0.0f));
  // A draw is finite, and an exponential one positive, at both ends of the words and where its formula changes.
  for (std::int64_t edge : {std::int64_t{0}, std::int64_t{1} << 31, std::int64_t{0xffffffff}}) {
    for (std::int64_t word = std::max<std::int64_t>(edge - 70000, 0); word <= edge + 70000; ++word) {
      if (word > 0xffffffff) break;
      const auto w = static_cast<std::uint32_t>(word);
      CHECK(m::exponential_draw(w) > 0.0f && m::exponential_draw(w) < 23.0f, "word %08x", w);
      CHECK(std::abs(m::gumbel(w)) < 23.0f, "word %08x", w);
      CHECK(std::abs(m::logistic(w)) < 23.0f && same(m::logistic(~w), -m::logistic(w)), "word %08x", w);
      CHECK(std::abs(m::laplace(w)) < 23.0f && m::laplace(w) != 0.0f, "word %08x", w);
      CHECK(same(m::laplace(~w), -m::laplace(w)) && (m::laplace(w) > 0.0f) == (w >= 0x80000000u), "word %08x", w);
      CHECK(m::uniform(w) > 0.0f && m::uniform(w) <= 1.0f, "word %08x", w);
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1) stride = std::atoll(arguments[1]);
  test_special_values();
  measure_elementary();
  measure_draws();
  measure_normals();
  return check::finish();
}
