// Results of the C API against the header math, element by element, under the instruction set that VARIATE_CPU names:
// the same bits under each, with one thread and two, for any shape and stride.
#include <variate/math/diffusion.hpp>
#include <variate/math/elbo.hpp>
#include <variate/math/ema.hpp>
#include <variate/math/random.hpp>
#include <variate/math/reparam.hpp>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "capi.hpp"

namespace m = variate::math;

namespace {

struct Shape {
  std::int64_t rows, cols;
};

// Around a Philox block, a vector, a tile of 1024; many rows to a tile and many tiles to a row; two threads' worth.
constexpr Shape shapes[] = {{1, 1},    {1, 3},    {1, 4},   {1, 16},  {1, 17},    {1, 1023}, {1, 1024},
                            {1, 1025}, {1, 5000}, {3, 1},   {7, 5},   {5, 16},    {70, 20},  {9, 100},
                            {33, 65},  {3, 1500}, {300, 3}, {4, 256}, {129, 257}, {2, 16384}};

// A counter that carries into its high word within a row, and one that wraps.
constexpr std::int64_t keys[][2] = {{42, 0}, {-1, 0xffffffff - 2}, {7, -3}, {0x123456789abcdef, 0x7ffffffff}};

m::Key key_of(const std::int64_t* key) {
  return {static_cast<std::uint64_t>(key[0]), static_cast<std::uint64_t>(key[1])};
}

// The noise of a call, row by row, as the contract states it.
struct Noise {
  variate_noise noise;

  m::Key key(std::int64_t row) const { return key_of(noise.key + row * noise.key_stride); }
  m::Words block(std::int64_t row, std::int64_t col, std::uint64_t draw = 0) const {
    const m::Key own = draw ? m::fold_in(key(row), draw) : key(row);
    const std::int64_t sample = noise.key_stride ? 0 : noise.first_sample + row;
    return m::noise_words(own, static_cast<std::uint64_t>(col / 4), static_cast<std::uint32_t>(sample));
  }
  std::uint32_t word(std::int64_t row, std::int64_t col, std::uint64_t draw = 0) const {
    return block(row, col, draw).w[col % 4];
  }
  float normal(std::int64_t row, std::int64_t col) const { return m::normals(block(row, col)).x[col % 4]; }
};

template <class T>
bool same_bits(const T& a, const T& b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// Numbers in [low, high) that no C library had a part in.
template <class T>
std::vector<T> numbers(std::int64_t count, std::uint64_t seed, T low, T high) {
  std::vector<T> x(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t word = m::noise_words({seed, 0}, static_cast<std::uint64_t>(i), 0).w[0];
    x[i] = low + (high - low) * (static_cast<T>(word >> 8) * T(0x1p-24));
  }
  return x;
}

// Reference conversions: the value of a pattern, and the pattern of the nearest value, ties to even.
struct Format {
  int mantissa_bits, bias;
};
constexpr Format bfloat16 = {7, 127};
constexpr Format float16 = {10, 15};

double decode(std::uint16_t bits, Format f) {
  const int exponent = (bits & 0x7fff) >> f.mantissa_bits;
  const int mantissa = bits & ((1 << f.mantissa_bits) - 1);
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == 2 * f.bias + 1) {
    return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  }
  const int implicit = exponent > 0 ? 1 << f.mantissa_bits : 0;
  return sign * std::ldexp(mantissa + implicit, std::max(exponent, 1) - f.bias - f.mantissa_bits);
}

double nearest(double x, Format f) {
  if (x == 0.0 || !std::isfinite(x)) return x;
  const int unit = std::max(std::ilogb(x), 1 - f.bias) - f.mantissa_bits;
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(x, -unit)), unit);
  const double limit = std::ldexp(1.0, f.bias + 1);
  return std::abs(rounded) < limit ? rounded : std::copysign(std::numeric_limits<double>::infinity(), x);
}

bool equal(double a, double b) { return (a != a && b != b) || (a == b && std::signbit(a) == std::signbit(b)); }

double value_of(float x) { return x; }
double value_of(double x) { return x; }
double value_of(std::uint8_t x) { return x; }
double value_of(std::int64_t x) { return static_cast<double>(x); }
double value_of(BFloat16 x) { return decode(x.bits, bfloat16); }
double value_of(Float16 x) { return decode(x.bits, float16); }

double rounded_to(double x, float) { return static_cast<float>(x); }
double rounded_to(double x, double) { return x; }
double rounded_to(double x, std::int64_t) { return x; }
double rounded_to(double x, BFloat16) { return nearest(x, bfloat16); }
double rounded_to(double x, Float16) { return nearest(x, float16); }

using Draw = variate_status (*)(const variate_random_args*);

// One draw against `expected(noise, row, col)`: dense, then every third element of every row of a wider buffer, whose
// other elements stay as they are.
template <class T, class Expected>
void check_draw(const char* name, Draw draw, Shape shape, const variate_noise& noise, Expected expected) {
  for (std::int64_t gap : {1, 3}) {
    const std::int64_t pitch = gap == 1 ? shape.cols : gap * shape.cols + 5;
    std::vector<T> sentinel(static_cast<std::size_t>(shape.rows * pitch));
    std::memset(sentinel.data(), 0x5a, sentinel.size() * sizeof(T));
    std::vector<T> previous;
    for (int threads : {1, 2}) {
      std::vector<T> out = sentinel;
      auto args = make<variate_random_args>(shape.rows, shape.cols, threads);
      args.noise = noise;
      args.out = view(out, pitch, gap);
      CHECK_OK(draw(&args));
      if (threads == 2) {
        CHECK(same_bits(out, previous), "%s: one thread and two differ", name);
        continue;
      }
      previous = out;
      for (std::int64_t r = 0; r < shape.rows; ++r) {
        for (std::int64_t c = 0; c < shape.cols; ++c) {
          T& got = out[r * pitch + c * gap];
          const auto want = expected(Noise{noise}, r, c);
          CHECK(equal(value_of(got), rounded_to(static_cast<double>(want), T{})), "%s [%lld, %lld] at (%lld, %lld): %a",
                name, (long long)shape.rows, (long long)shape.cols, (long long)r, (long long)c, value_of(got));
          got = sentinel[0];
        }
      }
      CHECK(same_bits(out, sentinel), "%s wrote between its elements", name);
    }
  }
}

template <class Run>
void for_noises(const Shape& shape, Run run) {
  for (const auto& key : keys) {
    run(variate_noise{key, 0, 0});
    run(variate_noise{key, 0, (std::int64_t{1} << 32) - shape.rows});  // up to the last sample
  }
  std::vector<std::int64_t> per_row;
  for (std::int64_t r = 0; r < shape.rows; ++r) per_row.insert(per_row.end(), {keys[r % 4][0] + r, keys[r % 4][1]});
  run(variate_noise{per_row.data(), 2, 0});
}

void test_draws() {
  const auto word = [](const Noise& n, std::int64_t r, std::int64_t c) { return n.word(r, c); };
  const auto uniform = [](const Noise& n, std::int64_t r, std::int64_t c) { return m::uniform(n.word(r, c)); };
  const auto normal = [](const Noise& n, std::int64_t r, std::int64_t c) { return n.normal(r, c); };
  const auto exponential = [](const Noise& n, std::int64_t r, std::int64_t c) {
    return m::exponential_draw(n.word(r, c));
  };
  const auto gumbel = [](const Noise& n, std::int64_t r, std::int64_t c) { return m::gumbel(n.word(r, c)); };
  for (const Shape& shape : shapes) {
    for_noises(shape, [&](const variate_noise& noise) {
      check_draw<std::int64_t>("bits", variate_bits, shape, noise, word);
      check_draw<float>("normal", variate_normal, shape, noise, normal);
    });
    const variate_noise noise = {keys[1], 0, 5};
    check_draw<float>("uniform", variate_uniform, shape, noise, uniform);
    check_draw<float>("exponential", variate_exponential, shape, noise, exponential);
    check_draw<float>("gumbel", variate_gumbel, shape, noise, gumbel);
    // Noise is float32, widened or rounded: it does not depend on the dtype.
    check_draw<double>("normal, float64", variate_normal, shape, noise, normal);
    check_draw<BFloat16>("normal, bfloat16", variate_normal, shape, noise, normal);
    check_draw<Float16>("normal, float16", variate_normal, shape, noise, normal);
    check_draw<Float16>("uniform, float16", variate_uniform, shape, noise, uniform);
  }
}

template <class P, class T>
void check_bernoulli(Shape shape) {
  const variate_noise noise = {keys[1], 0, 1};
  const std::vector<P> probs = numbers<P>(shape.rows * shape.cols, 1, P(-0.1), P(1.1));
  std::vector<T> out(probs.size());
  auto args = make<variate_bernoulli_args>(shape.rows, shape.cols);
  args.noise = noise;
  args.probs = view(probs, shape.cols);
  args.out = view(out, shape.cols);
  CHECK_OK(variate_bernoulli(&args));
  for (std::int64_t i = 0; i < shape.rows * shape.cols; ++i) {
    const P want = m::bernoulli(Noise{noise}.word(i / shape.cols, i % shape.cols), probs[i]);
    CHECK(value_of(out[i]) == static_cast<double>(want), "bernoulli, element %lld", (long long)i);
  }
}

void check_randint(Shape shape, std::int64_t low, std::int64_t high) {
  const std::uint64_t range = static_cast<std::uint64_t>(high) - static_cast<std::uint64_t>(low);
  std::vector<std::int64_t> out(static_cast<std::size_t>(shape.rows * shape.cols));
  auto args = make<variate_randint_args>(shape.rows, shape.cols, 2);
  args.noise = {keys[0], 0, 3};
  args.low = low;
  args.high = high;
  args.out = view(out, shape.cols);
  CHECK_OK(variate_randint(&args));
  for (std::int64_t i = 0; i < shape.rows * shape.cols; ++i) {
    const Noise noise{args.noise};
    const std::int64_t r = i / shape.cols, c = i % shape.cols;
    const std::uint64_t value = m::scale_carry(m::scale_word(noise.word(r, c), range), noise.word(r, c, 1), range);
    CHECK(out[i] == static_cast<std::int64_t>(static_cast<std::uint64_t>(low) + value), "randint of %lld ... %lld",
          (long long)low, (long long)high);
  }
}

template <class T>
void check_categorical(std::int64_t rows, std::int64_t groups, std::int64_t categories) {
  const std::int64_t cols = groups * categories;
  std::vector<T> logits = numbers<T>(rows * cols, 2, T(-3), T(3));
  for (std::int64_t i = 0; i < std::min<std::int64_t>(categories, 3); ++i)
    logits[i] = -std::numeric_limits<T>::infinity();
  if (rows > 1) logits[cols + categories / 2] = std::numeric_limits<T>::quiet_NaN();
  std::vector<std::int64_t> out(static_cast<std::size_t>(rows * groups), -1);
  auto args = make<variate_categorical_args>(rows, 0, 2);
  args.groups = groups;
  args.categories = categories;
  args.noise = {keys[2], 0, 9};
  args.logits = view(logits, cols);
  args.out = view(out, groups);
  CHECK_OK(variate_categorical(&args));
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t g = 0; g < groups; ++g) {
      std::int64_t winner = 0;
      T best = -std::numeric_limits<T>::infinity();
      for (std::int64_t k = 0; k < categories && best == best; ++k) {
        const std::int64_t c = g * categories + k;
        const T score = logits[r * cols + c] + static_cast<T>(m::gumbel(Noise{args.noise}.word(r, c)));
        if (score <= best) continue;
        best = score;
        winner = k;
      }
      CHECK(out[r * groups + g] == winner, "categorical of %lld, row %lld, group %lld", (long long)categories,
            (long long)r, (long long)g);
    }
  }
}

void test_discrete() {
  for (const Shape& shape : shapes) {
    check_bernoulli<float, float>(shape);
    check_bernoulli<float, std::uint8_t>(shape);
    check_bernoulli<float, BFloat16>(shape);
    check_bernoulli<double, std::int64_t>(shape);
    check_bernoulli<double, double>(shape);
    check_randint(shape, 0, 10);
    check_randint(shape, -7, 3'000'000'000);  // most words are undecided
    check_randint(shape, -5, (std::int64_t{1} << 32) - 5);
    check_randint(shape, std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::min() + 7);
  }
  check_categorical<float>(5, 3, 10);
  check_categorical<float>(1, 1, 1);
  check_categorical<float>(2, 1, 2500);
  check_categorical<float>(3, 2, 1027);
  check_categorical<float>(100, 17, 13);
  check_categorical<double>(4, 5, 7);
}

void test_fold_in() {
  std::vector<std::int64_t> in = {1, 2, 3, 4, 5, 6}, data = {0, -1, 77}, out(12, -9);
  auto args = make<variate_fold_in_args>(3, 0);
  args.keys = view(in, 1, 3);  // column-major
  args.data = view(data, 1);
  args.out = view(out, 4, 2);
  CHECK_OK(variate_fold_in(&args));
  for (int r = 0; r < 3; ++r) {
    const m::Key want = m::fold_in({static_cast<std::uint64_t>(in[r]), static_cast<std::uint64_t>(in[r + 3])},
                                   static_cast<std::uint64_t>(data[r]));
    CHECK(out[4 * r] == static_cast<std::int64_t>(want.seed) &&
          out[4 * r + 2] == static_cast<std::int64_t>(want.offset));
    CHECK(out[4 * r + 1] == -9 && out[4 * r + 3] == -9);
  }
}

// The gradient of z with respect to the mean is 1: grad_z goes to grad_mean unchanged but for its dtype.
template <class To, class From>
std::vector<To> convert(const std::vector<From>& from) {
  std::vector<To> to(from.size());
  const std::vector<float> zero = {0.0f};
  auto args = make<variate_normal_rsample_kl_backward_args>(1, static_cast<std::int64_t>(from.size()), 2);
  args.noise.key = keys[0];
  args.mean = args.log_var = view(zero, 0, 0);
  args.grad_z = view(from, 0);
  args.grad_mean = view(to, 0);
  CHECK_OK(variate_normal_rsample_kl_backward(&args));
  return to;
}

// Every 16-bit pattern to float32; to 16 bits, every pattern's value, the midpoint to the next, and their neighbours.
template <class Half>
void test_conversions(Format format) {
  std::vector<Half> patterns;
  for (int bits = 0; bits <= 0xffff; ++bits) patterns.push_back({static_cast<std::uint16_t>(bits)});
  const std::vector<float> widened = convert<float>(patterns);
  std::vector<float> candidates;
  for (int bits = 0; bits <= 0xffff; ++bits) {
    const auto pattern = static_cast<std::uint16_t>(bits);
    const double value = decode(pattern, format);
    CHECK(equal(widened[bits], value), "%04x widened to %a, not %a", bits, double(widened[bits]), value);
    const double next = decode(static_cast<std::uint16_t>(bits + 1), format);
    const double largest = std::ldexp(2.0 - std::ldexp(1.0, -format.mantissa_bits), format.bias);
    const double midpoint = std::isinf(next)
                                ? std::copysign(largest + std::ldexp(largest, -format.mantissa_bits - 2), next)
                                : 0.5 * (value + next);
    for (double x : {value, midpoint}) {
      const auto f = static_cast<float>(x);
      candidates.insert(candidates.end(), {f, std::nextafter(f, 0.0f), std::nextafter(f, 2.0f * f)});
    }
  }
  candidates.insert(candidates.end(), {std::numeric_limits<float>::max(), std::numeric_limits<float>::denorm_min(),
                                       -std::numeric_limits<float>::max(), -0.0f});
  const std::vector<Half> narrowed = convert<Half>(candidates);
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    CHECK(equal(value_of(narrowed[i]), nearest(candidates[i], format)), "%a narrowed to %04x", double(candidates[i]),
          narrowed[i].bits);
  }
}

// FNV-1a over the bits of results.
struct Digest {
  std::uint64_t state = 0xcbf29ce484222325u;

  void add(const std::vector<float>& x) {
    for (float value : x) {
      const std::uint32_t bits = m::bits_of(value);
      for (int shift = 0; shift < 32; shift += 8) state = (state ^ ((bits >> shift) & 0xffu)) * 0x100000001b3u;
    }
  }
};

// n terms summed in float32 by 16 partial sums: each is rounded n / 16 times, their tree 4 times, the result once.
double sum_tolerance(std::int64_t n, double magnitude) { return (n / 16 + 6) * 0x1p-24 * magnitude; }

template <class T>
struct Problem {
  Shape shape;
  std::vector<T> mean, log_var, prior_mean, prior_log_var, grad_z, grad_kl;
  variate_noise noise = {keys[1], 0, 11};

  explicit Problem(Shape s) : shape(s) {
    const std::int64_t n = s.rows * s.cols;
    mean = numbers<T>(n, 3, T(-2), T(2));
    log_var = numbers<T>(n, 4, T(-3), T(2));
    prior_mean = numbers<T>(s.cols, 5, T(-1), T(1));  // one row for all
    prior_log_var = numbers<T>(s.cols, 6, T(-1), T(1));
    grad_z = numbers<T>(n, 7, T(-1), T(1));
    grad_kl = numbers<T>(s.rows, 8, T(-1), T(1));
  }

  template <class Args>
  Args args(bool prior, double free_bits, int threads) const {
    auto a = make<Args>(shape.rows, shape.cols, threads);
    a.noise = noise;
    a.mean = view(mean, shape.cols);
    a.log_var = view(log_var, shape.cols);
    if (prior) {
      a.prior_mean = view(prior_mean, 0);
      a.prior_log_var = view(prior_log_var, 0);
    }
    a.free_bits_value = free_bits;
    return a;
  }
};

template <class T>
struct Sampled {
  std::vector<T> z, kl;
};

template <class T>
Sampled<T> run(const Problem<T>& p, bool prior, double free_bits, int threads) {
  Sampled<T> out{std::vector<T>(p.mean.size(), T(NAN)), std::vector<T>(p.shape.rows, T(NAN))};
  auto args = p.template args<variate_normal_rsample_kl_args>(prior, free_bits, threads);
  args.z = view(out.z, p.shape.cols);
  args.kl = view(out.kl, 1);
  std::vector<char> workspace(variate_normal_rsample_kl_workspace(&args));
  args.execution.workspace = workspace.data();
  args.execution.workspace_bytes = workspace.size();
  CHECK_OK(variate_normal_rsample_kl(&args));
  return out;
}

template <class T>
std::vector<std::vector<T>> run_backward(const Problem<T>& p, bool prior, double free_bits, int threads, bool with_z,
                                         bool with_kl) {
  std::vector<std::vector<T>> out(prior ? 4 : 2, std::vector<T>(p.mean.size(), T(NAN)));
  auto args = p.template args<variate_normal_rsample_kl_backward_args>(prior, free_bits, threads);
  if (with_z) args.grad_z = view(p.grad_z, p.shape.cols);
  if (with_kl) args.grad_kl = view(p.grad_kl, 1);
  args.grad_mean = view(out[0], p.shape.cols);
  args.grad_log_var = view(out[1], p.shape.cols);
  if (prior) args.grad_prior_mean = view(out[2], p.shape.cols);
  if (prior) args.grad_prior_log_var = view(out[3], p.shape.cols);
  CHECK_OK(variate_normal_rsample_kl_backward(&args));
  return out;
}

void test_normal_rsample_kl(Digest& digest) {
  for (const Shape& shape : shapes) {
    const Problem<float> p(shape);
    for (bool prior : {false, true}) {
      for (float free_bits : {0.0f, 0.5f}) {
        const Sampled<float> out = run(p, prior, free_bits, 1);
        const Sampled<float> two = run(p, prior, free_bits, 2);
        CHECK(same_bits(out.z, two.z) && same_bits(out.kl, two.kl), "one thread and two differ");
        for (std::int64_t r = 0; r < shape.rows; ++r) {
          double sum = 0.0, magnitude = 0.0;
          for (std::int64_t c = 0; c < shape.cols; ++c) {
            const std::int64_t i = r * shape.cols + c;
            const m::Spread<float> s = m::spread(p.log_var[i]);
            const float z = m::fma(s.sigma, Noise{p.noise}.normal(r, c), p.mean[i]);
            CHECK(same_bits(out.z[i], z), "z is %a, not %a", double(out.z[i]), double(z));
            const float kl = prior ? m::normal_kl(p.mean[i], p.log_var[i], p.prior_mean[c], p.prior_log_var[c]).kl
                                   : m::standard_normal_kl(p.mean[i], p.log_var[i], s.variance_minus_1);
            const double term = free_bits > 0.0f && kl < free_bits ? free_bits : kl;
            sum += term;
            magnitude += std::abs(term);
          }
          CHECK(std::abs(out.kl[r] - sum) <= sum_tolerance(shape.cols, magnitude), "kl is %g, not %g",
                double(out.kl[r]), sum);
        }
        digest.add(out.kl);
        for (int path : {1, 2, 3}) {
          const bool with_z = path & 1, with_kl = path & 2;
          const auto gradients = run_backward(p, prior, free_bits, 1, with_z, with_kl);
          const auto again = run_backward(p, prior, free_bits, 2, with_z, with_kl);
          for (std::size_t k = 0; k < gradients.size(); ++k) {
            CHECK(same_bits(gradients[k], again[k]), "one thread and two differ");
            digest.add(gradients[k]);
          }
        }
      }
    }
  }
}

// Float64 gradients are central differences of the float64 objective sum(grad_z z) + sum(grad_kl kl); float32 ones
// agree with them.
void test_gradients() {
  constexpr double h = 1e-5;
  const Problem<double> p({3, 7});
  const Problem<float> narrow({3, 7});
  const auto objective = [](const Problem<double>& q, bool prior) {
    const Sampled<double> out = run(q, prior, 0.0, 1);
    double sum = 0.0;
    for (std::size_t i = 0; i < out.z.size(); ++i) sum += q.grad_z[i] * out.z[i];
    for (std::size_t r = 0; r < out.kl.size(); ++r) sum += q.grad_kl[r] * out.kl[r];
    return sum;
  };
  for (bool prior : {false, true}) {
    auto gradients = run_backward(p, prior, 0.0, 1, true, true);
    const auto float32 = run_backward(narrow, prior, 0.0, 1, true, true);
    for (std::size_t k = 0; k < gradients.size(); ++k) {
      for (std::size_t i = 0; i < gradients[k].size(); ++i) {
        CHECK(std::abs(float32[k][i] - gradients[k][i]) <= 1e-5 * (1.0 + std::abs(gradients[k][i])));
      }
      if (k >= 2) {  // the prior's gradients come per element; its one row takes their sum
        for (std::size_t i = 7; i < gradients[k].size(); ++i) gradients[k][i % 7] += gradients[k][i];
        gradients[k].resize(7);
      }
      for (std::size_t i = 0; i < gradients[k].size(); ++i) {
        const auto moved = [&](double by) {
          Problem<double> q = p;
          (k == 0 ? q.mean : k == 1 ? q.log_var : k == 2 ? q.prior_mean : q.prior_log_var)[i] += by;
          return objective(q, prior);
        };
        const double difference = (moved(h) - moved(-h)) / (2.0 * h);
        CHECK(std::abs(difference - gradients[k][i]) <= 1e-8 * (1.0 + std::abs(difference)), "gradient %zu: %g, not %g",
              k, gradients[k][i], difference);
      }
    }
  }
}

void test_bernoulli_nll(Digest& digest) {
  for (const Shape& shape : shapes) {
    const std::int64_t n = shape.rows * shape.cols;
    const std::vector<float> logits = numbers<float>(n, 9, -12.0f, 12.0f);
    const std::vector<float> target = numbers<float>(n, 10, 0.0f, 1.0f);
    std::vector<std::uint8_t> binary(target.size());
    for (std::size_t i = 0; i < binary.size(); ++i) binary[i] = target[i] < 0.5f;
    const std::vector<float> grad_nll = numbers<float>(shape.rows, 11, -1.0f, 1.0f);
    for (bool is_binary : {false, true}) {
      std::vector<float> previous;
      for (int threads : {1, 2}) {
        std::vector<float> nll(shape.rows, NAN), grad(target.size(), NAN);
        auto args = make<variate_bernoulli_nll_args>(shape.rows, shape.cols, threads);
        args.logits = view(logits, shape.cols);
        args.target = is_binary ? view(binary, shape.cols) : view(target, shape.cols);
        args.nll = view(nll, 1);
        std::vector<char> workspace(variate_bernoulli_nll_workspace(&args));
        args.execution.workspace = workspace.data();
        args.execution.workspace_bytes = workspace.size();
        CHECK_OK(variate_bernoulli_nll(&args));
        auto backward = make<variate_bernoulli_nll_backward_args>(shape.rows, shape.cols, threads);
        backward.logits = args.logits;
        backward.target = args.target;
        backward.grad_nll = view(grad_nll, 1);
        backward.grad_logits = view(grad, shape.cols);
        CHECK_OK(variate_bernoulli_nll_backward(&backward));
        for (std::int64_t r = 0; r < shape.rows; ++r) {
          double sum = 0.0;
          for (std::int64_t i = r * shape.cols; i < (r + 1) * shape.cols; ++i) {
            const float y = is_binary ? binary[i] : target[i];
            sum += m::bernoulli_nll(logits[i], y);
            CHECK(same_bits(grad[i], grad_nll[r] * m::bernoulli_nll_gradient(logits[i], y)));
          }
          CHECK(std::abs(nll[r] - sum) <= sum_tolerance(shape.cols, sum), "nll is %g, not %g", double(nll[r]), sum);
        }
        if (threads == 1) {
          digest.add(nll);
          previous = nll;
        }
        CHECK(same_bits(nll, previous), "one thread and two differ");
      }
    }
  }
}

// The epilogue of a last layer, in place, on the middle rows of a call whose targets repeat.
void test_linear_bernoulli_nll() {
  for (const Shape& shape : shapes) {
    const std::int64_t n = shape.rows * shape.cols, period = (shape.rows + 1) / 2, first_row = 1;
    const std::vector<float> products = numbers<float>(n, 12, -12.0f, 12.0f);
    const std::vector<float> bias = numbers<float>(shape.cols, 13, -1.0f, 1.0f);
    const std::vector<float> target = numbers<float>(period * shape.cols, 14, 0.0f, 1.0f);
    const std::vector<float> grad_nll = numbers<float>(shape.rows, 15, -1.0f, 1.0f);
    std::vector<float> previous;
    for (int threads : {1, 2}) {
      std::vector<float> chunk = products, nll(shape.rows, NAN), grad_bias(shape.cols, 1.0f);
      auto args = make<variate_linear_nll_args>(shape.rows, shape.cols, threads);
      args.ways = 1;
      args.target_rows = period;
      args.first_row = first_row;
      args.products = args.residual = view(chunk, shape.cols);
      args.bias = view(bias, 0);
      args.target = view(target, shape.cols);
      args.grad_nll = view(grad_nll, 1);
      args.nll = view(nll, 1);
      args.grad_bias = view(grad_bias, 0);
      std::vector<double> workspace(variate_linear_nll_workspace(&args) / sizeof(double));
      args.execution.workspace = workspace.data();
      args.execution.workspace_bytes = workspace.size() * sizeof(double);
      CHECK_OK(variate_linear_bernoulli_nll(&args));
      std::vector<double> sums(shape.cols, 1.0);
      for (std::int64_t r = 0; r < shape.rows; ++r) {
        double sum = 0.0;
        for (std::int64_t c = 0; c < shape.cols; ++c) {
          const float logit = products[r * shape.cols + c] + bias[c];
          const float y = target[(first_row + r) % period * shape.cols + c];
          sum += m::bernoulli_nll(logit, y);
          const float residual = m::bernoulli_nll_gradient(logit, y);
          sums[c] += double(grad_nll[r]) * residual;
          CHECK(same_bits(chunk[r * shape.cols + c], residual));
        }
        CHECK(std::abs(nll[r] - sum) <= sum_tolerance(shape.cols, sum), "nll is %g, not %g", double(nll[r]), sum);
      }
      for (std::int64_t c = 0; c < shape.cols; ++c) {
        CHECK(std::abs(grad_bias[c] - sums[c]) <= sum_tolerance(shape.rows, shape.rows), "grad_bias is %g, not %g",
              double(grad_bias[c]), sums[c]);
      }
      if (threads == 1) previous = grad_bias;
      CHECK(same_bits(grad_bias, previous), "one thread and two differ");
    }
  }
}

// Categories, among them variables longer than a tile: against a sum of exponentials in float64.
void test_linear_categorical_nll() {
  for (const std::int64_t ways : {1, 2, 5, 16, 300, 2500}) {
    const std::int64_t rows = 19, variables = 3, cols = ways * variables;
    const std::vector<double> products = numbers<double>(rows * cols, 16, -20.0, 20.0);
    std::vector<std::int64_t> target(rows * variables);
    for (std::size_t i = 0; i < target.size(); ++i) target[i] = static_cast<std::int64_t>(7 * i) % ways;
    std::vector<double> residual(products.size(), NAN), nll(rows, NAN);
    auto args = make<variate_linear_nll_args>(rows, cols, 2);
    args.ways = ways;
    args.target_rows = rows;
    args.products = view(products, cols);
    args.residual = view(residual, cols);
    args.target = view(target, variables);
    args.nll = view(nll, 1);
    CHECK_OK(variate_linear_categorical_nll(&args));
    for (std::int64_t r = 0; r < rows; ++r) {
      double total = 0.0;
      for (std::int64_t v = 0; v < variables; ++v) {
        const double* logits = products.data() + r * cols + v * ways;
        const std::int64_t chosen = target[r * variables + v];
        double sum = 0.0;
        for (std::int64_t w = 0; w < ways; ++w) sum += std::exp(logits[w]);
        total += std::log(sum) - logits[chosen];
        for (std::int64_t w = 0; w < ways; ++w) {
          const double expected = std::exp(logits[w]) / sum - (w == chosen);
          CHECK(std::abs(residual[r * cols + v * ways + w] - expected) <= 1e-13);
        }
      }
      CHECK(std::abs(nll[r] - total) <= 1e-12 * (1.0 + total), "nll is %g, not %g", nll[r], total);
    }
  }
}

// Noising against the header math, element by element.
void test_noise_and_target() {
  const std::vector<double> levels = {1.0, 0.0, 0.6, 0.8, 0.0, 1.0, 0.28, 0.96};
  for (const Shape& shape : shapes) {
    const std::int64_t rows = shape.rows, cols = shape.cols;
    const std::int64_t channels = cols % 5 == 0 ? 5 : 1, tokens = cols % 4 == 0 ? 4 : 1;
    std::vector<float> x0(rows * cols);
    for (std::size_t i = 0; i < x0.size(); ++i) x0[i] = static_cast<float>(i % 29) / 8.0f - 1.0f;
    std::vector<std::int64_t> timestep(rows * tokens);
    for (std::size_t i = 0; i < timestep.size(); ++i) timestep[i] = static_cast<std::int64_t>(i % 4);
    for (int prediction = 0; prediction <= VARIATE_PREDICT_EDM; ++prediction) {
      std::vector<float> x_t[2], target[2];
      for (int threads : {1, 2}) {
        std::vector<float>&noised = x_t[threads - 1], &wanted = target[threads - 1];
        noised.assign(rows * cols, NAN);
        wanted.assign(rows * cols, NAN);
        auto args = make<variate_noise_and_target_args>(rows, cols, threads);
        args.noise = {keys[1], 0, 5};
        args.prediction = static_cast<variate_prediction>(prediction);
        args.sigma_data = 0.5;
        args.levels = view(levels, 2);
        args.table_size = 4;
        args.timestep = view(timestep, tokens);
        args.tokens = tokens;
        args.offset_noise = 0.25;
        args.channels = channels;
        args.x0 = view(x0, cols);
        args.x_t = view(noised, cols);
        args.target = view(wanted, cols);
        CHECK_OK(variate_noise_and_target(&args));
        const Noise noise{args.noise};
        for (std::int64_t r = 0; threads == 1 && r < rows; ++r) {
          for (std::int64_t c = 0; c < cols; ++c) {
            const std::int64_t channel = c / (cols / channels), t = timestep[r * tokens + c / (cols / tokens)];
            const float offset = m::normals(noise.block(r, channel, 1)).x[channel % 4];
            const float eps = noise.normal(r, c) + 0.25f * offset, x = x0[r * cols + c];
            const auto n = m::noising<float>(args.prediction, levels[2 * t], levels[2 * t + 1], 0.5);
            CHECK(same_bits(noised[r * cols + c], m::combine(n.alpha, x, n.sigma, eps)));
            CHECK(same_bits(wanted[r * cols + c], m::combine(n.from_x0, x, n.from_noise, eps)));
          }
        }
      }
      CHECK(same_bits(x_t[0], x_t[1]) && same_bits(target[0], target[1]));
    }
  }
}

// The loss against float64, and its gradient: the one made with it and the one made after it.
void test_denoising_loss() {
  for (const Shape& shape : shapes) {
    const std::int64_t rows = shape.rows, cols = shape.cols;
    std::vector<float> prediction(rows * cols), target(rows * cols), weight(rows), loss(rows), grad_loss(rows);
    for (std::size_t i = 0; i < prediction.size(); ++i) {
      prediction[i] = static_cast<float>(i % 31) / 8.0f;
      target[i] = static_cast<float>(i % 17) / 4.0f;
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      weight[r] = 0.5f + static_cast<float>(r % 3);
      grad_loss[r] = 1.0f / static_cast<float>(rows);
    }
    for (variate_penalty penalty : {VARIATE_SQUARE, VARIATE_HUBER}) {
      std::vector<float> ahead(rows * cols, NAN), after(rows * cols, NAN);
      auto args = make<variate_denoising_loss_args>(rows, cols, 2);
      args.penalty = penalty;
      args.delta = 0.75;
      args.prediction = view(prediction, cols);
      args.target = view(target, cols);
      args.weight = view(weight, 1);
      args.loss = view(loss, 1);
      args.grad_prediction = view(ahead, cols);
      std::vector<double> workspace(variate_denoising_loss_workspace(&args) / sizeof(double));
      args.execution.workspace = workspace.data();
      args.execution.workspace_bytes = workspace.size() * sizeof(double);
      CHECK_OK(variate_denoising_loss(&args));
      auto backward = make<variate_denoising_loss_backward_args>(rows, cols, 1);
      backward.penalty = penalty;
      backward.delta = 0.75;
      backward.prediction = args.prediction;
      backward.target = args.target;
      backward.weight = args.weight;
      backward.grad_loss = view(grad_loss, 1);
      backward.grad_prediction = view(after, cols);
      CHECK_OK(variate_denoising_loss_backward(&backward));
      CHECK(same_bits(ahead, after));
      for (std::int64_t r = 0; r < rows; ++r) {
        double sum = 0.0;
        for (std::int64_t c = 0; c < cols; ++c) {
          const double d = static_cast<double>(prediction[r * cols + c]) - target[r * cols + c];
          const double bounded = std::min(std::abs(d), 0.75);
          sum += penalty == VARIATE_SQUARE ? d * d : bounded * (std::abs(d) - 0.5 * bounded);
        }
        const double expected = sum / static_cast<double>(cols) * weight[r];
        CHECK(std::abs(loss[r] - expected) <= 1e-6 * (1.0 + expected), "loss is %g, not %g", loss[r], expected);
      }
    }
  }
}

// Averages against the header math, of tensors around a tile and a chunk, in two profiles.
void test_ema_update() {
  const std::int64_t sizes[] = {1, 0, 17, 1024, 16384, 16385, 40000};
  constexpr std::int64_t tensors = 7;
  const std::vector<double> decay = {0.999, 0.25};
  std::vector<float> parameters[tensors], averages[2 * tensors];
  const void* parameter_data[tensors];
  void* average_data[2 * tensors];
  variate_dtype dtypes[2 * tensors];
  for (std::int64_t i = 0; i < tensors; ++i) {
    for (std::int64_t j = 0; j < sizes[i]; ++j) parameters[i].push_back(static_cast<float>(j % 23) / 4.0f);
    parameter_data[i] = parameters[i].data();
    for (int k : {0, 1}) {
      averages[k * tensors + i].assign(sizes[i], 1.0f + static_cast<float>(k));
      average_data[k * tensors + i] = averages[k * tensors + i].data();
      dtypes[k * tensors + i] = VARIATE_FLOAT32;
    }
  }
  variate_ema_update_args args = {};
  args.struct_size = sizeof args;
  args.execution.threads = 2;
  args.tensors = tensors;
  args.profiles = 2;
  args.sizes = sizes;
  args.averages = average_data;
  args.parameters = parameter_data;
  args.average_dtypes = args.parameter_dtypes = dtypes;
  args.decay = view(decay, 1);
  CHECK_OK(variate_ema_update(&args));
  for (std::int64_t i = 0; i < tensors; ++i) {
    for (std::int64_t j = 0; j < sizes[i]; ++j) {
      const float p = parameters[i][j], near = static_cast<float>(1.0 - 0.999), keep = 0.25f;
      CHECK(same_bits(averages[i][j], m::average<false>(1.0f, p, near, 0.999f)));
      CHECK(same_bits(averages[tensors + i][j], m::average<true>(2.0f, p, 0.75f, keep)));
    }
  }
}

// A NaN comes out where it went in, and nowhere else.
void test_nan() {
  Problem<float> p({5, 30});
  p.mean[2 * 30 + 7] = NAN;
  p.log_var[4 * 30 + 29] = NAN;
  const Sampled<float> out = run(p, false, 0.25, 1);
  for (std::int64_t i = 0; i < 150; ++i) CHECK(std::isnan(out.z[i]) == (i == 2 * 30 + 7 || i == 4 * 30 + 29));
  for (int r = 0; r < 5; ++r) CHECK(std::isnan(out.kl[r]) == (r == 2 || r == 4));
}

// Whether the set that VARIATE_CPU asks for is in use; if the machine lacks it there is nothing to test.
bool machine_has(const char* wanted) {
  for (const char* known : {"portable", "avx2", "avx512", "amx"}) {
    if (std::strcmp(wanted, known) != 0) continue;
    if (!std::strstr(variate_cpu_capabilities(), wanted)) return false;
    CHECK(std::strcmp(variate_cpu_capability(), wanted) == 0, "VARIATE_CPU=%s, but %s is in use", wanted,
          variate_cpu_capability());
    return true;
  }
  // An unknown name leaves the best set, which is named last.
  const char* last = std::strrchr(variate_cpu_capabilities(), ' ');
  CHECK(std::strcmp(variate_cpu_capability(), last ? last + 1 : variate_cpu_capabilities()) == 0);
  return true;
}

}  // namespace

int main() {
  const char* wanted = std::getenv("VARIATE_CPU");
  if (!machine_has(wanted ? wanted : "")) {
    std::printf("this machine has no %s\n", wanted);
    return 77;
  }
  test_draws();
  test_discrete();
  test_fold_in();
  test_conversions<BFloat16>(bfloat16);
  test_conversions<Float16>(float16);
  Digest digest;
  test_normal_rsample_kl(digest);
  test_bernoulli_nll(digest);
  // Sums and gradients have one order and one rounding: these are their bits on every machine.
  constexpr std::uint64_t expected = 0x87e8ae8fed878003;
  CHECK(digest.state == expected, "the bits of sums and gradients are %016llx",
        static_cast<unsigned long long>(digest.state));
  test_gradients();
  test_linear_bernoulli_nll();
  test_linear_categorical_nll();
  test_noise_and_target();
  test_denoising_loss();
  test_ema_update();
  test_nan();
  std::printf("%s\n", variate_cpu_capability());
  return check::finish();
}
