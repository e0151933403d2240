// Bad arguments: a status and a message, and nothing written.
#include <cstring>
#include <limits>
#include <thread>

#include "capi.hpp"

namespace {

const std::int64_t key[2] = {42, 0};
constexpr std::int64_t int64_max = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t int64_min = std::numeric_limits<std::int64_t>::min();

std::vector<float> out(64, -1.0f);

bool untouched() {
  for (float x : out) {
    if (x != -1.0f) return false;
  }
  return true;
}

// The call is refused with a message that begins with the function and holds `word`, and writes nothing.
#define CHECK_REFUSED(function, args, word)                                                            \
  do {                                                                                                 \
    CHECK(function(&args) == VARIATE_INVALID_ARGUMENT, "%s", word);                                    \
    CHECK(std::strncmp(variate_last_error(), #function ": ", std::strlen(#function) + 2) == 0, "%s",   \
          variate_last_error());                                                                       \
    CHECK(std::strstr(variate_last_error(), word), "'%s' is not in '%s'", word, variate_last_error()); \
    CHECK(untouched(), "%s", variate_last_error());                                                    \
  } while (false)

variate_random_args draw() {
  auto args = make<variate_random_args>(4, 16);
  args.noise.key = key;
  args.out = view(out, 16);
  return args;
}

template <class Change>
void refuse_draw(const char* word, Change change) {
  variate_random_args args = draw();
  change(args);
  CHECK_REFUSED(variate_normal, args, word);
}

void test_draws() {
  using Args = variate_random_args;
  CHECK(variate_normal(nullptr) == VARIATE_INVALID_ARGUMENT && std::strstr(variate_last_error(), "args"));
  refuse_draw("struct_size", [](Args& a) { a.struct_size = 0; });
  refuse_draw("struct_size", [](Args& a) { a.struct_size -= 8; });
  refuse_draw("struct_size", [](Args& a) { a.struct_size += 8; });
  refuse_draw("rows", [](Args& a) { a.rows = -1; });
  refuse_draw("rows", [](Args& a) { a.rows = int64_min; });
  refuse_draw("cols", [](Args& a) { a.cols = -1; });
  refuse_draw("first_sample", [](Args& a) { a.rows = int64_max; });
  refuse_draw("noise.key", [](Args& a) { a.noise.key = nullptr; });
  for (std::int64_t stride : {int64_min, std::int64_t{-2}, std::int64_t{1}, std::int64_t{3}, int64_max}) {
    refuse_draw("key_stride", [=](Args& a) { a.noise.key_stride = stride; });
  }
  const std::int64_t end = std::int64_t{1} << 32;
  for (std::int64_t first : {int64_min, std::int64_t{-1}, end - 3, end, int64_max}) {
    refuse_draw("first_sample", [=](Args& a) { a.noise.first_sample = first; });
  }
  refuse_draw("first_sample", [](Args& a) {
    a.noise.key_stride = 2;
    a.noise.first_sample = 1;
  });
  refuse_draw("out is missing", [](Args& a) { a.out.data = nullptr; });
  for (int dtype : {int{VARIATE_UINT8}, int{VARIATE_INT64}, 6, 99}) {
    refuse_draw("dtype", [=](Args& a) { std::memcpy(&a.out.dtype, &dtype, sizeof dtype); });
  }
  // More threads than a machine has to give would end the process.
  for (int threads : {-1, 4097, std::numeric_limits<std::int32_t>::max()}) {
    refuse_draw("threads", [=](Args& a) { a.execution.threads = threads; });
  }
  refuse_draw("device", [](Args& a) {
    const int device = 7;
    std::memcpy(&a.execution.device, &device, sizeof device);
  });
  variate_random_args words = draw();
  CHECK_REFUSED(variate_bits, words, "dtype");
}

void test_other_noise_calls() {
  auto bernoulli = make<variate_bernoulli_args>(4, 16);
  bernoulli.noise.key = key;
  bernoulli.out = view(out, 16);
  CHECK_REFUSED(variate_bernoulli, bernoulli, "probs");
  const std::vector<std::int64_t> integers(64);
  bernoulli.probs = view(integers, 16);
  CHECK_REFUSED(variate_bernoulli, bernoulli, "probs");

  auto randint = make<variate_randint_args>(4, 16);
  randint.noise.key = key;
  randint.out = view(integers, 16);
  const std::int64_t bad_ranges[][2] = {{0, 0}, {1, 0}, {0, (std::int64_t{1} << 32) + 1}, {int64_min, int64_max}};
  for (const auto& range : bad_ranges) {
    randint.low = range[0];
    randint.high = range[1];
    CHECK_REFUSED(variate_randint, randint, "high");
  }

  auto categorical = make<variate_categorical_args>(4, 0);
  categorical.noise.key = key;
  categorical.groups = 1;
  categorical.logits = view(out, 16);
  categorical.out = view(integers, 1);
  CHECK_REFUSED(variate_categorical, categorical, "categories");
  categorical.categories = 16;
  categorical.groups = -1;
  CHECK_REFUSED(variate_categorical, categorical, "groups");

  auto fold_in = make<variate_fold_in_args>(4, 0);
  fold_in.keys = view(integers, 2);
  fold_in.data = view(integers, 1);
  fold_in.out = view(out, 2);
  CHECK_REFUSED(variate_fold_in, fold_in, "out");
}

void test_reductions() {
  const std::vector<float> input(64);
  const std::vector<std::int64_t> integers(64);
  auto sample = make<variate_normal_rsample_kl_args>(4, 16);
  sample.noise.key = key;
  sample.mean = sample.log_var = view(input, 16);
  sample.z = view(out, 16);
  sample.kl = view(out, 1);
  sample.log_var.data = nullptr;
  CHECK_REFUSED(variate_normal_rsample_kl, sample, "log_var");
  sample.log_var = view(integers, 16);
  CHECK_REFUSED(variate_normal_rsample_kl, sample, "log_var");
  sample.log_var = view(input, 16);
  sample.kl.dtype = VARIATE_FLOAT16;
  CHECK_REFUSED(variate_normal_rsample_kl, sample, "kl");
  sample.kl.dtype = VARIATE_FLOAT32;
  sample.prior_mean = view(integers, 16);
  CHECK_REFUSED(variate_normal_rsample_kl, sample, "prior_mean");
  sample.prior_mean = {};
  sample.rows = int64_min;
  CHECK_REFUSED(variate_normal_rsample_kl, sample, "rows");

  auto gradient = make<variate_normal_rsample_kl_backward_args>(4, 16);
  gradient.noise.key = key;
  gradient.mean = gradient.log_var = view(input, 16);
  gradient.grad_prior_mean = view(out, 16);
  CHECK_REFUSED(variate_normal_rsample_kl_backward, gradient, "prior");

  auto nll = make<variate_bernoulli_nll_args>(4, 16);
  nll.logits = view(input, 16);
  nll.nll = view(out, 1);
  CHECK_REFUSED(variate_bernoulli_nll, nll, "target");
  nll.target = view(integers, 16);
  CHECK_REFUSED(variate_bernoulli_nll, nll, "target");
}

void test_satisfies() {
  const std::vector<float> input(64);
  const std::vector<std::int64_t> integers(64);
  std::int32_t satisfied = -1;
  auto call = make<variate_satisfies_args>(4, 16);
  call.value = view(input, 16);
  CHECK_REFUSED(variate_satisfies, call, "satisfied is missing");
  call.satisfied = &satisfied;
  for (int constraint : {-1, 5}) {
    call.constraint = static_cast<variate_constraint>(constraint);
    CHECK_REFUSED(variate_satisfies, call, "constraint");
  }
  call.constraint = VARIATE_POSITIVE;
  call.value = view(integers, 16);
  CHECK_REFUSED(variate_satisfies, call, "value");
  call.value = {};
  CHECK_REFUSED(variate_satisfies, call, "value is missing");
  call.execution.device = VARIATE_CUDA;
  call.value = view(input, 16);
  CHECK(variate_satisfies(&call) == VARIATE_UNSUPPORTED && satisfied == -1);
  call.execution.device = VARIATE_CPU;
  CHECK_OK(variate_satisfies(&call));
  CHECK(satisfied == 0);
  call.rows = 0;
  CHECK_OK(variate_satisfies(&call));
  CHECK(satisfied == 1);
}

void test_bound() {
  const std::vector<float> input(64);
  const std::vector<std::int64_t> integers(64);
  auto bound = make<variate_importance_weighted_bound_args>(4, 16);
  bound.log_weight = view(input, 16);
  bound.bound = bound.effective_sample_size = view(out, 1);
  CHECK_REFUSED(variate_importance_weighted_bound, bound, "weight is missing");
  bound.weight = view(integers, 16);
  CHECK_REFUSED(variate_importance_weighted_bound, bound, "weight");
  bound.weight = view(out, 16);
  bound.log_weight = view(integers, 16);
  CHECK_REFUSED(variate_importance_weighted_bound, bound, "log_weight");
  bound.log_weight = view(input, 16);
  for (std::int64_t rows : {int64_min, std::int64_t{-1}, std::int64_t{0}}) {
    bound.rows = rows;
    CHECK_REFUSED(variate_importance_weighted_bound, bound, "rows must be at least 1");
  }
  bound.rows = 1;
  bound.learning_signal = view(out, 16);
  CHECK_REFUSED(variate_importance_weighted_bound, bound, "rows must be at least 2");
  bound.rows = 4;
  bound.execution.device = VARIATE_CUDA;
  CHECK(variate_importance_weighted_bound(&bound) == VARIATE_UNSUPPORTED && untouched());
  bound.cols = 0;
  CHECK_OK(variate_importance_weighted_bound(&bound));
}

template <class Args, class Change>
void refuse_samples(variate_status (*call)(const Args*), Args args, const char* word, Change change) {
  change(args);
  CHECK(call(&args) == VARIATE_INVALID_ARGUMENT, "%s", word);
  CHECK(std::strstr(variate_last_error(), word), "'%s' is not in '%s'", word, variate_last_error());
  CHECK(untouched());
}

void test_samples() {
  const std::vector<float> input(64);
  auto forward = make<variate_location_scale_rsample_args>(4, 8);
  forward.noise.key = key;
  forward.samples = 2;
  forward.loc = forward.spread = view(input, 8);
  forward.z = view(out, 8);
  forward.z_sample_stride = 32;
  auto backward = make<variate_location_scale_rsample_backward_args>(4, 8);
  backward.noise.key = key;
  backward.samples = 2;
  backward.grad_z = backward.spread = view(input, 8);
  backward.grad_z_sample_stride = 32;
  backward.grad_loc = view(out, 8);
  const auto refuse = [&](const char* word, auto change) {
    refuse_samples(variate_location_scale_rsample, forward, word, change);
    refuse_samples(variate_location_scale_rsample_backward, backward, word, change);
  };
  refuse("struct_size", [](auto& a) { a.struct_size -= 8; });
  refuse("rows", [](auto& a) { a.rows = -1; });
  refuse("noise.key", [](auto& a) { a.noise.key = nullptr; });
  for (std::int64_t samples : {int64_min, std::int64_t{-1}, std::int64_t{0}}) {
    refuse("samples", [=](auto& a) { a.samples = samples; });
  }
  refuse("antithetic", [](auto& a) { a.antithetic = 2; });
  for (int base : {-1, 4}) refuse("base", [=](auto& a) { a.base = static_cast<variate_base>(base); });
  refuse("parametrization", [](auto& a) { a.parametrization = static_cast<variate_parametrization>(3); });
  refuse("spread", [](auto& a) { a.spread.data = nullptr; });
  refuse_samples(variate_location_scale_rsample, forward, "loc", [](auto& a) { a.loc.dtype = VARIATE_INT64; });
  refuse_samples(variate_location_scale_rsample, forward, "z is missing", [](auto& a) { a.z.data = nullptr; });
  refuse_samples(variate_location_scale_rsample_backward, backward, "grad_z", [](auto& a) { a.grad_z = {}; });
  forward.rows = 0;
  forward.z = {};
  CHECK_OK(variate_location_scale_rsample(&forward));
}

void test_linear() {
  const std::vector<float> input(64), bias(16);
  const std::vector<std::int64_t> categories(64);
  auto args = make<variate_linear_nll_args>(4, 16);
  args.ways = 1;
  args.target_rows = 4;
  args.products = args.target = view(input, 16);
  args.nll = view(out, 1);
  const auto refuse = [&](const char* word, auto change) {
    variate_linear_nll_args changed = args;
    change(changed);
    CHECK_REFUSED(variate_linear_bernoulli_nll, changed, word);
  };
  using Args = variate_linear_nll_args;
  refuse("struct_size", [](Args& a) { a.struct_size = 0; });
  refuse("rows", [](Args& a) { a.rows = -1; });
  refuse("cols", [](Args& a) { a.cols = int64_min; });
  refuse("ways", [](Args& a) { a.ways = 0; });
  refuse("ways", [](Args& a) { a.ways = 4; });
  refuse("target_rows", [](Args& a) { a.target_rows = 0; });
  refuse("first_row", [](Args& a) { a.first_row = -1; });
  refuse("products", [](Args& a) { a.products.data = nullptr; });
  refuse("products", [&](Args& a) { a.products = view(categories, 16); });
  refuse("target", [](Args& a) { a.target.data = nullptr; });
  refuse("target", [&](Args& a) { a.target = view(categories, 16); });
  refuse("bias", [&](Args& a) { a.bias = view(categories, 0); });
  refuse("grad_nll", [&](Args& a) { a.grad_nll = view(categories, 1); });
  refuse("residual", [&](Args& a) { a.residual = view(categories, 16); });
  refuse("nll", [&](Args& a) { a.nll = view(categories, 1); });
  refuse("workspace", [&](Args& a) { a.grad_bias = view(bias, 0); });
  refuse("workspace", [&](Args& a) {
    a.cols = int64_max;
    a.grad_bias = view(bias, 0);
  });
  CHECK_REFUSED(variate_linear_categorical_nll, args, "target");
  args.target = view(categories, 4);
  args.ways = 3;
  CHECK_REFUSED(variate_linear_categorical_nll, args, "ways");
  CHECK(variate_linear_nll_workspace(nullptr) == 0 && variate_linear_nll_workspace(&args) == 0);
  args.ways = 4;
  CHECK_OK(variate_linear_categorical_nll(&args));
  out.assign(64, -1.0f);
  // No rows need no pointers; rows without columns have a likelihood of 0 nats.
  args.cols = 0;
  args.products = args.target = {};
  CHECK_OK(variate_linear_categorical_nll(&args));
  for (int r = 0; r < 4; ++r) CHECK(out[r] == 0.0f);
  out.assign(64, -1.0f);
  args.rows = 0;
  args.nll = {};
  CHECK_OK(variate_linear_categorical_nll(&args));
}

void test_relaxed() {
  const std::vector<float> input(64);
  const std::vector<std::int64_t> integers(64);
  auto softmax = make<variate_gumbel_softmax_args>(4, 0);
  softmax.noise.key = key;
  softmax.groups = 2;
  softmax.categories = 8;
  softmax.temperature_value = 1.0;
  softmax.logits = view(input, 16);
  softmax.y = view(out, 16);
  const auto refuse = [](auto call, auto args, const char* word, auto change) {
    refuse_samples(call, args, word, change);
  };
  refuse(variate_gumbel_softmax, softmax, "groups", [](auto& a) { a.groups = -1; });
  refuse(variate_gumbel_softmax, softmax, "categories", [](auto& a) { a.categories = int64_min; });
  refuse(variate_gumbel_softmax, softmax, "hard", [](auto& a) { a.hard = 2; });
  for (double value : {0.0, -1.0, std::numeric_limits<double>::quiet_NaN()}) {
    refuse(variate_gumbel_softmax, softmax, "temperature_value", [=](auto& a) { a.temperature_value = value; });
  }
  refuse(variate_gumbel_softmax, softmax, "temperature", [&](auto& a) { a.temperature = view(integers, 0); });
  refuse(variate_gumbel_softmax, softmax, "noise.key", [](auto& a) { a.noise.key = nullptr; });
  refuse(variate_gumbel_softmax, softmax, "logits", [&](auto& a) { a.logits = view(integers, 16); });
  refuse(variate_gumbel_softmax, softmax, "y is missing", [](auto& a) { a.y = {}; });

  auto gradient = make<variate_gumbel_softmax_backward_args>(4, 0);
  gradient.groups = 2;
  gradient.categories = 8;
  gradient.temperature_value = 1.0;
  gradient.grad_y = view(input, 16);
  gradient.grad_logits = view(out, 16);
  CHECK_REFUSED(variate_gumbel_softmax_backward, gradient, "exactly one of y and logits");
  gradient.y = gradient.logits = view(input, 16);
  CHECK_REFUSED(variate_gumbel_softmax_backward, gradient, "exactly one of y and logits");
  gradient.y = {};
  gradient.noise.key = key;
  gradient.noise.first_sample = -1;
  CHECK_REFUSED(variate_gumbel_softmax_backward, gradient, "first_sample");

  auto relaxed = make<variate_relaxed_bernoulli_rsample_args>(4, 16);
  relaxed.noise.key = key;
  relaxed.logits = view(input, 16);
  relaxed.z = view(out, 16);
  CHECK_REFUSED(variate_relaxed_bernoulli_rsample, relaxed, "temperature_value must be above 0");
  auto slope = make<variate_relaxed_bernoulli_rsample_backward_args>(4, 16);
  slope.temperature_value = 1.0;
  slope.logits = view(input, 16);
  slope.grad_logits = view(out, 16);
  CHECK_REFUSED(variate_relaxed_bernoulli_rsample_backward, slope, "grad_z");
  auto hard = make<variate_bernoulli_straight_through_args>(4, 16);
  hard.noise.key = key;
  hard.logits = view(input, 16);
  hard.out = view(integers, 16);
  CHECK_REFUSED(variate_bernoulli_straight_through, hard, "out");
}

void test_evidence_terms() {
  const std::vector<float> input(64);
  const std::vector<std::int64_t> integers(64);
  auto kl = make<variate_normal_kl_args>(4, 16);
  kl.mean = view(input, 16);
  kl.kl = view(out, 1);
  CHECK_REFUSED(variate_normal_kl, kl, "spread");
  kl.spread = view(integers, 16);
  CHECK_REFUSED(variate_normal_kl, kl, "spread");
  kl.spread = view(input, 16);
  kl.kl.dtype = VARIATE_BFLOAT16;  // a term may have it, a sum not
  CHECK_REFUSED(variate_normal_kl, kl, "kl");
  kl.kl.dtype = VARIATE_FLOAT32;
  for (int parametrization : {-1, 3}) {
    std::memcpy(&kl.parametrization, &parametrization, sizeof parametrization);
    CHECK_REFUSED(variate_normal_kl, kl, "parametrization");
  }
  kl.parametrization = VARIATE_LOG_VAR;
  kl.prior_spread = view(integers, 16);
  CHECK_REFUSED(variate_normal_kl, kl, "prior_spread");

  auto gradient = make<variate_normal_kl_backward_args>(4, 16);
  gradient.grad_kl = gradient.mean = gradient.spread = view(input, 16);
  gradient.grad_prior_spread = view(out, 16);
  CHECK_REFUSED(variate_normal_kl_backward, gradient, "need a prior");

  auto nll = make<variate_normal_nll_args>(4, 16);
  nll.mean = nll.spread = view(input, 16);
  nll.nll = view(out, 1);
  CHECK_REFUSED(variate_normal_nll, nll, "target");
  auto nll_gradient = make<variate_normal_nll_backward_args>(4, 16);
  nll_gradient.mean = nll_gradient.spread = nll_gradient.target = view(input, 16);
  nll_gradient.grad_mean = view(out, 16);
  CHECK_REFUSED(variate_normal_nll_backward, nll_gradient, "grad_nll");

  auto bernoulli = make<variate_bernoulli_kl_args>(4, 16);
  bernoulli.logits = view(input, 16);
  bernoulli.kl = view(out, 1);
  CHECK_REFUSED(variate_bernoulli_kl, bernoulli, "prior_logits");
  auto bernoulli_gradient = make<variate_bernoulli_kl_backward_args>(4, 16);
  bernoulli_gradient.logits = bernoulli_gradient.prior_logits = bernoulli_gradient.grad_kl = view(input, 16);
  bernoulli_gradient.grad_logits = view(integers, 16);
  CHECK_REFUSED(variate_bernoulli_kl_backward, bernoulli_gradient, "grad_logits");
}

void test_categories() {
  const std::vector<float> input(64);
  const std::vector<std::int64_t> integers(64);
  auto nll = make<variate_categorical_nll_args>(4, 0);
  nll.groups = 2;
  nll.logits = view(input, 16);
  nll.target = view(integers, 2);
  nll.nll = view(out, 1);
  CHECK_REFUSED(variate_categorical_nll, nll, "categories must be at least 1");
  nll.categories = 8;
  nll.target = view(input, 2);
  CHECK_REFUSED(variate_categorical_nll, nll, "target");
  nll.target = view(integers, 2);
  nll.groups = -1;
  CHECK_REFUSED(variate_categorical_nll, nll, "groups");

  auto gradient = make<variate_categorical_nll_backward_args>(4, 0);
  gradient.groups = 2;
  gradient.categories = 8;
  gradient.logits = gradient.grad_nll = view(input, 16);
  gradient.target = view(integers, 2);
  gradient.grad_logits = view(out, 16);
  CHECK_REFUSED(variate_categorical_nll_backward, gradient, "log_sum_exp");

  auto kl = make<variate_categorical_kl_args>(4, 0);
  kl.groups = 2;
  kl.categories = 8;
  kl.logits = view(input, 16);
  kl.kl = view(out, 1);
  CHECK_REFUSED(variate_categorical_kl, kl, "prior_logits");
  auto kl_gradient = make<variate_categorical_kl_backward_args>(4, 0);
  kl_gradient.groups = 2;
  kl_gradient.categories = 8;
  kl_gradient.logits = kl_gradient.prior_logits = view(input, 16);
  CHECK_REFUSED(variate_categorical_kl_backward, kl_gradient, "grad_kl");

  // Rows without groups have a sum: 0. A target that is no category is NaN, and nothing beyond the row is read.
  std::vector<float> sums(4, -1.0f);
  nll.groups = 0;
  nll.nll = view(sums, 1);
  CHECK_OK(variate_categorical_nll(&nll));
  for (float x : sums) CHECK(x == 0.0f);
  const std::vector<std::int64_t> far = {0, 0, int64_max, 0, int64_min, 0, 0, -1};
  nll.groups = 2;
  nll.target = view(far, 2);
  CHECK_OK(variate_categorical_nll(&nll));
  for (int r = 0; r < 4; ++r) CHECK((sums[r] != sums[r]) == (r > 0));
}

// Rows of more than one tile are summed in parts, for which the caller lends memory.
void test_workspace() {
  const std::vector<float> input(2 * 3000);
  std::vector<char> workspace(64);
  auto nll = make<variate_bernoulli_nll_args>(2, 3000);
  nll.logits = nll.target = view(input, 3000);
  nll.nll = view(out, 1);
  const std::uint64_t bytes = variate_bernoulli_nll_workspace(&nll);
  CHECK(bytes > 0 && bytes <= workspace.size());
  CHECK_REFUSED(variate_bernoulli_nll, nll, "workspace");
  nll.execution.workspace = workspace.data();
  nll.execution.workspace_bytes = bytes - 1;
  CHECK_REFUSED(variate_bernoulli_nll, nll, "workspace");
  nll.execution.workspace = nullptr;
  nll.execution.workspace_bytes = bytes;
  CHECK_REFUSED(variate_bernoulli_nll, nll, "workspace");
  nll.execution.workspace = workspace.data();
  CHECK_OK(variate_bernoulli_nll(&nll));
  out.assign(64, -1.0f);
  CHECK(variate_bernoulli_nll_workspace(nullptr) == 0 && variate_normal_rsample_kl_workspace(nullptr) == 0);
  // Sizes that no memory holds are refused, too.
  nll.cols = int64_max;
  CHECK_REFUSED(variate_bernoulli_nll, nll, "workspace");
}

template <class Args>
Args mixture(const std::vector<float>& input, std::vector<char>& workspace) {
  Args args{};
  args.struct_size = sizeof args;
  args.batch = 2;
  args.pixels = 4;
  args.channels = 1;
  args.mixtures = 2;
  args.bits = 8;
  args.params = {const_cast<float*>(input.data()), VARIATE_FLOAT32, 24, 6, 1};
  args.execution.workspace = workspace.data();
  args.execution.workspace_bytes = workspace.size();
  return args;
}

// What every call over a mixture refuses.
#define CHECK_REFUSED_MIXTURES(function, args)                 \
  do {                                                         \
    auto bad = args;                                           \
    for (int channels : {-1, 0, 2, 4}) {                       \
      bad.channels = channels;                                 \
      CHECK_REFUSED(function, bad, "channels");                \
    }                                                          \
    bad = args;                                                \
    bad.mixtures = 0;                                          \
    CHECK_REFUSED(function, bad, "mixtures");                  \
    bad = args;                                                \
    for (int bits : {std::numeric_limits<int>::min(), 0, 9}) { \
      bad.bits = bits;                                         \
      CHECK_REFUSED(function, bad, "bits");                    \
    }                                                          \
    bad = args;                                                \
    bad.batch = -1;                                            \
    CHECK_REFUSED(function, bad, "batch");                     \
    bad = args;                                                \
    bad.pixels = -1;                                           \
    CHECK_REFUSED(function, bad, "pixels");                    \
    bad = args;                                                \
    bad.params.data = nullptr;                                 \
    CHECK_REFUSED(function, bad, "params is missing");         \
    bad = args;                                                \
    bad.params.dtype = VARIATE_INT64;                          \
    CHECK_REFUSED(function, bad, "params has a dtype");        \
  } while (false)

void test_logistic() {
  const std::vector<float> input(64);
  auto nll = make<variate_discretized_logistic_nll_args>(4, 16);
  nll.bits = 8;
  nll.mean = nll.log_scale = nll.target = view(input, 16);
  nll.nll = view(out, 1);
  for (int bits : {-8, 0, 9}) {
    nll.bits = bits;
    CHECK_REFUSED(variate_discretized_logistic_nll, nll, "bits");
  }
  nll.bits = 8;
  const int edges = 2;
  std::memcpy(&nll.edges, &edges, sizeof edges);
  CHECK_REFUSED(variate_discretized_logistic_nll, nll, "edges");
  nll.edges = VARIATE_COMPAT_EDGES;
  nll.log_scale.data = nullptr;
  CHECK_REFUSED(variate_discretized_logistic_nll, nll, "log_scale");

  auto backward = make<variate_discretized_logistic_nll_backward_args>(4, 16);
  backward.bits = 8;
  backward.mean = backward.log_scale = backward.target = view(input, 16);
  backward.grad_mean = backward.grad_log_scale = view(out, 16);
  CHECK_REFUSED(variate_discretized_logistic_nll_backward, backward, "grad_nll");

  std::vector<char> workspace(1 << 20);
  auto whole = mixture<variate_discretized_logistic_mixture_nll_args>(input, workspace);
  whole.target = {const_cast<float*>(input.data()), VARIATE_FLOAT32, 4, 1, 1};
  whole.nll = view(out, 1);
  CHECK_REFUSED_MIXTURES(variate_discretized_logistic_mixture_nll, whole);
  const std::uint64_t bytes = variate_discretized_logistic_mixture_nll_workspace(&whole);
  CHECK(bytes > 0 && bytes <= workspace.size() && variate_discretized_logistic_mixture_nll_workspace(nullptr) == 0);
  whole.execution.workspace_bytes = bytes - 1;
  CHECK_REFUSED(variate_discretized_logistic_mixture_nll, whole, "workspace");

  auto gradient = mixture<variate_discretized_logistic_mixture_nll_backward_args>(input, workspace);
  gradient.target = whole.target;
  gradient.grad_nll = view(input, 1);
  gradient.grad_params = {out.data(), VARIATE_FLOAT32, 24, 6, 1};
  CHECK_REFUSED_MIXTURES(variate_discretized_logistic_mixture_nll_backward, gradient);
  gradient.grad_params.data = nullptr;
  CHECK_REFUSED(variate_discretized_logistic_mixture_nll_backward, gradient, "grad_params");

  auto sample = mixture<variate_discretized_logistic_mixture_sample_args>(input, workspace);
  sample.noise.key = key;
  sample.sample = {out.data(), VARIATE_UINT8, 4, 1, 1};
  CHECK_REFUSED_MIXTURES(variate_discretized_logistic_mixture_sample, sample);
  sample.sample.dtype = VARIATE_FLOAT32;
  CHECK_REFUSED(variate_discretized_logistic_mixture_sample, sample, "sample has a dtype");
  sample.noise.key = nullptr;
  CHECK_REFUSED(variate_discretized_logistic_mixture_sample, sample, "noise.key");
}

void test_device() {
  if (variate_cuda_architectures()[0] != '\0') return;
  variate_random_args args = draw();
  args.execution.device = VARIATE_CUDA;
  CHECK(variate_normal(&args) == VARIATE_UNSUPPORTED);
  CHECK(std::strcmp(variate_last_error(), "variate_normal: this libvariate was built without CUDA") == 0);
  CHECK(untouched());
}

// No rows or no columns: the fields are checked, nothing is touched, and no pointer is needed.
void test_empty() {
  variate_random_args args = draw();
  args.out.data = nullptr;
  args.rows = 0;
  CHECK_OK(variate_normal(&args));
  args.rows = 4;
  args.cols = 0;
  CHECK_OK(variate_normal(&args));
  args.noise.key_stride = 1;
  CHECK_REFUSED(variate_normal, args, "key_stride");

  // A sum over no columns is 0. The row strides of tensors that are not there are not followed.
  const std::int64_t rows = 600;
  std::vector<float> sums(rows, -1.0f);
  auto nll = make<variate_bernoulli_nll_args>(rows, 0);
  nll.logits.row_stride = nll.target.row_stride = 3;
  nll.nll = view(sums, 1);
  CHECK_OK(variate_bernoulli_nll(&nll));
  for (float x : sums) CHECK(x == 0.0f);
  sums.assign(rows, -1.0f);
  auto sample = make<variate_normal_rsample_kl_args>(rows, 0);
  sample.noise.key = key;
  sample.mean.row_stride = sample.log_var.row_stride = sample.z.row_stride = 3;
  sample.free_bits_value = 1.0;
  sample.kl = view(sums, 1);
  CHECK_OK(variate_normal_rsample_kl(&sample));
  for (float x : sums) CHECK(x == 0.0f);
  nll.rows = sample.rows = 0;
  nll.nll = sample.kl = {};
  CHECK_OK(variate_bernoulli_nll(&nll));
  CHECK_OK(variate_normal_rsample_kl(&sample));
}

void test_potts() {
  using Args = variate_potts_gibbs_args;
  std::vector<std::uint8_t> states(24, 7), workspace(8192);
  const std::vector<double> beta = {0.5}, coupling = {1.0}, field = {0.0, 1.0, 0.0};
  Args good{};
  good.struct_size = sizeof good;
  good.execution.workspace = workspace.data();
  good.execution.workspace_bytes = workspace.size();
  good.noise.key = key;
  good.lattice = {2, VARIATE_PERIODIC, 1, 4, 6};
  good.chains = good.sweeps = 1;
  good.categories = 3;
  good.beta = view(beta, 0);
  good.coupling = view(coupling, 0);
  good.field = view(field, 0);
  good.states = states.data();
  const auto refuse = [&](const char* word, auto change) {
    Args args = good;
    change(args);
    CHECK_REFUSED(variate_potts_gibbs, args, word);
    for (std::uint8_t state : states) CHECK(state == 7);
  };
  refuse("struct_size", [](Args& a) { --a.struct_size; });
  refuse("chains", [](Args& a) { a.chains = -1; });
  refuse("sweeps", [](Args& a) { a.sweeps = -1; });
  for (std::int64_t q : {int64_min, std::int64_t{1}, std::int64_t{256}, int64_max}) {
    refuse("categories", [=](Args& a) { a.categories = q; });
  }
  refuse("lattice.dimensions", [](Args& a) { a.lattice.dimensions = 4; });
  refuse("lattice.boundary", [](Args& a) { a.lattice.boundary = static_cast<variate_boundary>(2); });
  refuse("lattice.depth must be 1", [](Args& a) { a.lattice.depth = 2; });
  refuse("lattice.depth must be at least 2", [](Args& a) { a.lattice.dimensions = 3; });
  refuse("lattice.height must be even", [](Args& a) { a.lattice.height = 5; });
  refuse("lattice.width must be at least 2", [](Args& a) { a.lattice.width = 0; });
  refuse("noise.key", [](Args& a) { a.noise.key = nullptr; });
  refuse("execution.workspace", [](Args& a) { a.execution.workspace = nullptr; });
  refuse("execution.workspace", [](Args& a) {
    --a.execution.workspace_bytes;
    a.lattice.width = 4096;
  });
  refuse("beta is missing", [](Args& a) { a.beta.data = nullptr; });
  refuse("coupling", [](Args& a) { a.coupling.dtype = VARIATE_FLOAT32; });
  refuse("field", [](Args& a) { a.field.dtype = VARIATE_FLOAT32; });
  refuse("states is missing", [](Args& a) { a.states = nullptr; });
  Args none = good;
  none.sweeps = 0;
  none.states = nullptr;
  CHECK_OK(variate_potts_gibbs(&none));
  CHECK(variate_potts_gibbs_workspace(&good) <= workspace.size());
  CHECK_OK(variate_potts_gibbs(&good));
  for (std::uint8_t state : states) CHECK(state < 3);
}

// A lattice of 4 x 6 sites: a word a row and colour.
struct Ising {
  std::vector<std::uint32_t> words = std::vector<std::uint32_t>(8, 5), bonds = std::vector<std::uint32_t>(32);
  std::vector<std::int8_t> spins = std::vector<std::int8_t>(24, 7);
  std::vector<std::int64_t> sums = std::vector<std::int64_t>(2, 7), correlation = std::vector<std::int64_t>(5, 7);
  std::vector<double> moments = std::vector<double>(VARIATE_ISING_MOMENTS, 7.0);
  std::vector<double> beta = {0.5}, coupling = {1.0}, field = {0.1};
  std::vector<char> workspace = std::vector<char>(8192);

  template <class Args>
  Args call() {
    Args args{};
    args.struct_size = sizeof args;
    args.execution.workspace = workspace.data();
    args.execution.workspace_bytes = workspace.size();
    args.lattice = {2, VARIATE_PERIODIC, 1, 4, 6};
    args.chains = 1;
    args.words = words.data();
    return args;
  }

  variate_ising_pack_args packing() {
    auto args = call<variate_ising_pack_args>();
    args.spins = spins.data();
    return args;
  }

  variate_ising_gibbs_args sampling() {
    auto args = call<variate_ising_gibbs_args>();
    args.noise.key = key;
    args.sweeps = args.measure_every = 1;
    args.beta = view(beta, 0);
    args.coupling = view(coupling, 0);
    args.field = view(field, 0);
    args.bonds = bonds.data();
    args.moments = moments.data();
    return args;
  }

  variate_ising_measure_args measuring() {
    auto args = call<variate_ising_measure_args>();
    args.bonds = bonds.data();
    args.sums = sums.data();
    args.distance = 5;
    args.correlation = correlation.data();
    return args;
  }

  bool as_they_were() const {
    const Ising fresh;
    return words == fresh.words && spins == fresh.spins && sums == fresh.sums && correlation == fresh.correlation &&
           moments == fresh.moments;
  }
};

#define REFUSE_ISING(function, args, word, change) \
  do {                                             \
    auto changed = args;                           \
    change(changed);                               \
    CHECK_REFUSED(function, changed, word);        \
    CHECK(ising.as_they_were(), "%s", word);       \
  } while (false)

void test_ising() {
  Ising ising;
  const auto refuse_all = [&](const char* word, auto change) {
    REFUSE_ISING(variate_ising_pack, ising.packing(), word, change);
    REFUSE_ISING(variate_ising_unpack, ising.packing(), word, change);
    REFUSE_ISING(variate_ising_gibbs, ising.sampling(), word, change);
    REFUSE_ISING(variate_ising_measure, ising.measuring(), word, change);
  };
  const auto refuse_packing = [&](const char* word, auto change) {
    REFUSE_ISING(variate_ising_pack, ising.packing(), word, change);
    REFUSE_ISING(variate_ising_unpack, ising.packing(), word, change);
  };
  const auto refuse_sampling = [&](const char* word, auto change) {
    REFUSE_ISING(variate_ising_gibbs, ising.sampling(), word, change);
  };
  const auto refuse_measuring = [&](const char* word, auto change) {
    REFUSE_ISING(variate_ising_measure, ising.measuring(), word, change);
  };
  CHECK(variate_ising_pack(nullptr) == VARIATE_INVALID_ARGUMENT && std::strstr(variate_last_error(), "args"));
  CHECK(variate_ising_unpack(nullptr) == VARIATE_INVALID_ARGUMENT && std::strstr(variate_last_error(), "args"));
  CHECK(variate_ising_gibbs(nullptr) == VARIATE_INVALID_ARGUMENT && std::strstr(variate_last_error(), "args"));
  CHECK(variate_ising_measure(nullptr) == VARIATE_INVALID_ARGUMENT && std::strstr(variate_last_error(), "args"));
  CHECK(variate_ising_gibbs_workspace(nullptr) == 0 && variate_ising_measure_workspace(nullptr) == 0);

  refuse_all("struct_size", [](auto& a) { a.struct_size = 0; });
  refuse_all("struct_size", [](auto& a) { a.struct_size += 8; });
  for (int dimensions : {-1, 0, 1, 4}) {
    refuse_all("lattice.dimensions must be 2 or 3", [=](auto& a) { a.lattice.dimensions = dimensions; });
  }
  for (int boundary : {-1, 2}) {
    refuse_all("lattice.boundary", [=](auto& a) { std::memcpy(&a.lattice.boundary, &boundary, sizeof boundary); });
  }
  for (std::int64_t side : {int64_min, std::int64_t{0}, std::int64_t{1}, std::int64_t{5}}) {
    refuse_all("lattice.width must be at least 2, and even", [=](auto& a) { a.lattice.width = side; });
    refuse_all("lattice.height must be at least 2, and even", [=](auto& a) { a.lattice.height = side; });
    refuse_all("lattice.depth must be at least 2, and even", [=](auto& a) {
      a.lattice.dimensions = 3;
      a.lattice.depth = side;
    });
  }
  for (std::int64_t depth : {int64_min, std::int64_t{0}, std::int64_t{2}}) {
    refuse_all("lattice.depth must be 1", [=](auto& a) { a.lattice.depth = depth; });
  }
  refuse_all("lattice.width", [](auto& a) {
    a.lattice.boundary = VARIATE_OPEN;
    a.lattice.width = 1;
  });
  for (std::int64_t chains : {int64_min, std::int64_t{-1}}) refuse_all("chains", [=](auto& a) { a.chains = chains; });
  for (int threads : {-1, 4097}) {
    refuse_all("execution.threads", [=](auto& a) { a.execution.threads = threads; });
  }
  refuse_all("execution.device", [](auto& a) {
    const int device = 7;
    std::memcpy(&a.execution.device, &device, sizeof device);
  });
  refuse_all("words is missing", [](auto& a) { a.words = nullptr; });

  refuse_packing("spins is missing", [](auto& a) { a.spins = nullptr; });

  const std::uint64_t bytes = [&] {
    const auto args = ising.sampling();
    return variate_ising_gibbs_workspace(&args);
  }();
  CHECK(bytes > 0 && bytes <= ising.workspace.size());
  refuse_sampling("execution.workspace", [](auto& a) { a.execution.workspace = nullptr; });
  refuse_sampling("execution.workspace", [=](auto& a) { a.execution.workspace_bytes = bytes - 1; });
  refuse_sampling("sweeps", [](auto& a) { a.sweeps = -1; });
  refuse_sampling("noise.key", [](auto& a) { a.noise.key = nullptr; });
  refuse_sampling("noise.key_stride", [](auto& a) { a.noise.key_stride = 1; });
  refuse_sampling("noise.first_sample", [](auto& a) { a.noise.first_sample = -1; });
  refuse_sampling("noise.first_sample", [](auto& a) { a.chains = int64_max; });
  refuse_sampling("noise.first_sample", [](auto& a) {
    a.noise.key_stride = 2;
    a.noise.first_sample = 1;
  });
  for (std::int64_t every : {int64_min, std::int64_t{-1}, std::int64_t{0}}) {
    refuse_sampling("measure_every", [=](auto& a) { a.measure_every = every; });
  }
  refuse_sampling("beta is missing", [](auto& a) { a.beta.data = nullptr; });
  refuse_sampling("beta has a dtype", [](auto& a) { a.beta.dtype = VARIATE_FLOAT32; });
  refuse_sampling("coupling is missing", [](auto& a) { a.coupling.data = nullptr; });
  refuse_sampling("coupling has a dtype", [](auto& a) { a.coupling.dtype = VARIATE_INT64; });
  refuse_sampling("field is missing", [](auto& a) { a.field.data = nullptr; });
  refuse_sampling("field has a dtype", [](auto& a) { a.field.dtype = VARIATE_FLOAT16; });

  refuse_measuring("execution.workspace", [](auto& a) { a.execution.workspace = nullptr; });
  refuse_measuring("execution.workspace",
                   [](auto& a) { a.execution.workspace_bytes = variate_ising_measure_workspace(&a) - 1; });
  for (std::int64_t distance : {int64_min, std::int64_t{-1}, std::int64_t{6}, int64_max}) {
    refuse_measuring("distance must lie in [0, width)", [=](auto& a) { a.distance = distance; });
  }
  refuse_measuring("sums is missing", [](auto& a) { a.sums = nullptr; });
  refuse_measuring("correlation is missing", [](auto& a) { a.correlation = nullptr; });

  // No chains need no pointers.
  auto none = ising.sampling();
  none.chains = 0;
  none.words = nullptr;
  none.beta = none.coupling = none.field = {};
  CHECK_OK(variate_ising_gibbs(&none));
  CHECK(ising.as_they_were());
  // And what is refused above is right but for the one change.
  const auto packing = ising.packing();
  const auto sampling = ising.sampling();
  const auto measuring = ising.measuring();
  CHECK_OK(variate_ising_pack(&packing));
  for (std::uint32_t word : ising.words) CHECK(word == 7);
  CHECK_OK(variate_ising_unpack(&packing));
  for (std::int8_t spin : ising.spins) CHECK(spin == 1);
  CHECK_OK(variate_ising_measure(&measuring));
  CHECK(ising.sums[0] == 24 && ising.sums[1] == -48);  // all signs of the bonds are negative
  for (std::int64_t sum : ising.correlation) CHECK(sum == 24);
  CHECK_OK(variate_ising_gibbs(&sampling));
  CHECK(ising.moments[VARIATE_ISING_M2] >= 7.0 && ising.moments[VARIATE_ISING_M2] <= 8.0);
  for (std::uint32_t word : ising.words) CHECK(word < 8);
}

// A message belongs to its thread and outlives calls that succeed.
void test_last_error() {
  variate_random_args args = draw();
  args.rows = -7;
  CHECK(variate_uniform(&args) == VARIATE_INVALID_ARGUMENT);
  CHECK(std::strcmp(variate_last_error(), "variate_uniform: rows must be at least 0, got -7") == 0, "%s",
        variate_last_error());
  args.rows = 0;
  CHECK_OK(variate_uniform(&args));
  std::thread([] { CHECK(std::strcmp(variate_last_error(), "") == 0); }).join();
  CHECK(std::strstr(variate_last_error(), "got -7"));
}

variate_rbm_gibbs_args machine() {
  static const std::vector<float> weight(40), bias(8), beta(4, 1.0f);
  static std::vector<std::uint8_t> states(64);
  static std::vector<std::int64_t> workspace(1 << 16);
  auto args = make<variate_rbm_gibbs_args>(4, 0);
  args.noise.key = key;
  args.visible_units = 8;
  args.hidden_units = 5;
  args.steps = 1;
  args.visible = view(states, 8);
  args.hidden = view(states, 5);
  args.weight = view(weight, 5);
  args.visible_bias = view(bias, 1, 0);
  args.hidden_bias = view(bias, 1, 0);
  args.beta = view(beta, 1, 0);
  args.visible_probs = view(out, 8);
  args.execution.workspace = workspace.data();
  args.execution.workspace_bytes = workspace.size() * sizeof(std::int64_t);
  return args;
}

template <class Change>
void refuse_machine(const char* word, Change change) {
  variate_rbm_gibbs_args args = machine();
  change(args);
  CHECK_REFUSED(variate_rbm_gibbs, args, word);
}

void test_rbm() {
  using Args = variate_rbm_gibbs_args;
  refuse_machine("struct_size", [](Args& a) { a.struct_size -= 8; });
  refuse_machine("rows", [](Args& a) { a.rows = int64_min; });
  refuse_machine("first_sample", [](Args& a) { a.rows = int64_max; });
  for (std::int64_t units : {std::int64_t{-1}, int64_min, int64_max}) {
    refuse_machine("units", [=](Args& a) { a.visible_units = units; });
    refuse_machine("units", [=](Args& a) { a.hidden_units = units; });
  }
  for (int kind : {-1, 3, 99}) {
    refuse_machine("visible_kind", [=](Args& a) { std::memcpy(&a.visible_kind, &kind, sizeof kind); });
  }
  for (std::int64_t categories : {std::int64_t{-1}, std::int64_t{0}, std::int64_t{3}, std::int64_t{257}, int64_max}) {
    refuse_machine("categories", [=](Args& a) {
      a.visible_kind = VARIATE_VISIBLE_CATEGORICAL;
      a.categories = categories;
    });
  }
  refuse_machine("steps", [](Args& a) { a.steps = -1; });
  for (std::int64_t first : {std::int64_t{-1}, std::int64_t{1} << 32, int64_min, int64_max}) {
    refuse_machine("first_step", [=](Args& a) { a.first_step = first; });
  }
  refuse_machine("first_step", [](Args& a) { a.steps = int64_max; });
  refuse_machine("noise.key", [](Args& a) { a.noise.key = nullptr; });
  refuse_machine("workspace", [](Args& a) { a.execution.workspace = nullptr; });
  refuse_machine("workspace", [](Args& a) { a.execution.workspace_bytes = variate_rbm_gibbs_workspace(&a) - 1; });
  refuse_machine("visible is missing", [](Args& a) { a.visible.data = nullptr; });
  refuse_machine("visible must have dense rows", [](Args& a) { a.visible.col_stride = 2; });
  refuse_machine("visible", [](Args& a) { a.visible_kind = VARIATE_VISIBLE_GAUSSIAN; });
  refuse_machine("hidden", [](Args& a) { a.hidden.dtype = VARIATE_FLOAT32; });
  refuse_machine("weight", [](Args& a) { a.weight.dtype = VARIATE_FLOAT64; });
  refuse_machine("visible_bias", [](Args& a) { a.visible_bias.data = nullptr; });
  refuse_machine("hidden_bias", [](Args& a) { a.hidden_bias.data = nullptr; });
  refuse_machine("beta", [](Args& a) { a.beta.data = nullptr; });
  refuse_machine("clamp", [](Args& a) { a.clamp = a.beta; });
  refuse_machine("packed", [](Args& a) { a.packed = 2; });
  refuse_machine("packed", [](Args& a) {
    a.packed = 1;
    a.visible_kind = VARIATE_VISIBLE_CATEGORICAL;
    a.categories = 2;
  });
  refuse_machine("visible_probs", [](Args& a) { a.steps = 0; });
  refuse_machine("hidden_probs", [](Args& a) { a.hidden_probs = a.hidden; });
  CHECK(variate_rbm_gibbs_workspace(nullptr) == 0);
}

// What annealing and tempering take of a call for Gibbs steps.
template <class Args>
Args with_machine(Args args) {
  const variate_rbm_gibbs_args rows = machine();
  args.noise = rows.noise;
  args.execution = rows.execution;
  args.visible_units = rows.visible_units;
  args.hidden_units = rows.hidden_units;
  args.visible = rows.visible;
  args.weight = rows.weight;
  args.visible_bias = rows.visible_bias;
  args.hidden_bias = rows.hidden_bias;
  return args;
}

void test_annealing() {
  using Args = variate_rbm_anneal_args;
  static const double betas[] = {0.0, 0.5, 1.0};
  static double log_weights[4];
  auto good = with_machine(make<Args>(4, 0));
  good.steps = 2;
  good.base_bias = good.visible_bias;
  good.betas = betas;
  good.log_weights = log_weights;
  const auto refuse = [&](const char* word, auto change) {
    Args args = good;
    change(args);
    CHECK_REFUSED(variate_rbm_anneal, args, word);
  };
  refuse("struct_size", [](Args& a) { a.struct_size -= 8; });
  refuse("rows", [](Args& a) { a.rows = -1; });
  refuse("units", [](Args& a) { a.hidden_units = -1; });
  refuse("steps", [](Args& a) { a.steps = -1; });
  refuse("first_step", [](Args& a) { a.first_step = int64_max; });
  refuse("noise.key", [](Args& a) { a.noise.key = nullptr; });
  refuse("workspace", [](Args& a) { a.execution.workspace_bytes = variate_rbm_anneal_workspace(&a) - 1; });
  refuse("visible is missing", [](Args& a) { a.visible.data = nullptr; });
  refuse("weight", [](Args& a) { a.weight.dtype = VARIATE_FLOAT64; });
  refuse("base_bias", [](Args& a) { a.base_bias.data = nullptr; });
  refuse("betas", [](Args& a) { a.betas = nullptr; });
  refuse("log_weights", [](Args& a) { a.log_weights = nullptr; });
  CHECK(variate_rbm_anneal_workspace(nullptr) == 0);
  // Without weights and biases every machine of the ladder is the same: 4 chains, weight 1.
  CHECK_OK(variate_rbm_anneal(&good));
  for (const double weight : log_weights) CHECK(weight == 0.0);
}

void test_tempering() {
  using Args = variate_rbm_temper_args;
  static const double betas[] = {0.5, 1.0};
  static std::int64_t accepted[1];
  auto good = with_machine(Args{sizeof(Args)});
  good.chains = 2;
  good.temperatures = 2;
  good.rounds = 3;
  good.steps = 1;
  good.hidden = machine().hidden;
  good.betas = betas;
  good.accepted = accepted;
  const auto refuse = [&](const char* word, auto change) {
    Args args = good;
    change(args);
    CHECK_REFUSED(variate_rbm_temper, args, word);
  };
  refuse("struct_size", [](Args& a) { a.struct_size -= 8; });
  for (std::int64_t value : {std::int64_t{-1}, int64_min, int64_max}) {
    refuse("chains", [=](Args& a) { a.chains = value; });
    refuse("temperatures", [=](Args& a) { a.temperatures = value; });
    refuse("steps", [=](Args& a) { a.steps = value; });
    refuse("round", [=](Args& a) { a.rounds = value; });
    refuse("first_round", [=](Args& a) { a.first_round = value; });
    refuse("first_sample", [=](Args& a) { a.noise.first_sample = value; });
  }
  refuse("temperatures", [](Args& a) { a.temperatures = 0; });
  refuse("noise.key", [](Args& a) { a.noise.key = nullptr; });
  refuse("key_stride", [](Args& a) { a.noise.key_stride = 2; });
  refuse("workspace", [](Args& a) { a.execution.workspace_bytes = variate_rbm_temper_workspace(&a) - 1; });
  refuse("hidden", [](Args& a) { a.hidden.data = nullptr; });
  refuse("betas", [](Args& a) { a.betas = nullptr; });
  refuse("accepted", [](Args& a) { a.accepted = nullptr; });
  CHECK(variate_rbm_temper_workspace(nullptr) == 0);
  // Without weights and biases all energies are 0, and every swap that is tried is made: in rounds 0 and 2.
  CHECK_OK(variate_rbm_temper(&good));
  CHECK(accepted[0] == 4);
}

void test_denoising() {
  using Args = variate_denoise_step_args;
  constexpr int columns = VARIATE_DENOISE_COLUMNS;
  static std::vector<double> table(2 * columns, 0.0);
  table[VARIATE_DENOISE_PREV_SAMPLE] = 0.5;
  table[VARIATE_DENOISE_PREV_NOISE] = 1.0;
  table[columns + VARIATE_DENOISE_PREV_HISTORY_1] = 1.0;
  static const std::vector<float> sample(64, 1.0f);
  static std::int64_t counter[2] = {3, 0};
  auto good = make<Args>(4, 16);
  good.noise.key = key;
  good.sample = good.output = good.history[0] = good.history[1] = view(sample, 16);
  good.coefficients = table.data();
  good.table_size = 2;
  good.counter = counter;
  good.prev = view(out, 16);
  const auto refuse = [&](const char* word, auto change) {
    Args args = good;
    change(args);
    CHECK_REFUSED(variate_denoise_step, args, word);
    CHECK(counter[0] == 3, "%s", word);
  };
  refuse("struct_size", [](Args& a) { a.struct_size -= 8; });
  refuse("coefficients", [](Args& a) { a.coefficients = nullptr; });
  for (std::int64_t value : {std::int64_t{-1}, std::int64_t{2}, int64_min, int64_max}) {
    refuse("row must", [=](Args& a) { a.row = value; });
    refuse("row must", [=](Args& a) {
      static std::int64_t rows[4] = {0, 0, 1, 0};
      rows[3] = value;
      a.table_rows = {rows, VARIATE_INT64, 1, 0};
      a.table_row_tokens = 1;
    });
  }
  for (std::int64_t tokens : {std::int64_t{0}, std::int64_t{-1}, std::int64_t{3}, int64_min}) {
    refuse("table_row_tokens", [=](Args& a) {
      a.table_rows = {const_cast<std::int64_t*>(key), VARIATE_INT64, 0, 0};
      a.table_row_tokens = tokens;
    });
  }
  refuse("counter_stride", [](Args& a) { a.counter_stride = 1; });
  refuse("step", [](Args& a) { a.step = -1; });
  refuse("noise.key", [](Args& a) { a.noise.key = nullptr; });
  refuse("key_stride", [](Args& a) { a.noise.key_stride = 1; });
  refuse("sample is missing", [](Args& a) { a.sample.data = nullptr; });
  refuse("output is missing", [](Args& a) { a.output.data = nullptr; });
  refuse("prev is missing", [](Args& a) { a.prev.data = nullptr; });
  refuse("history is missing", [](Args& a) {
    a.row = 1;
    a.history[1].data = nullptr;
  });
  refuse("variance is missing", [](Args& a) { a.variance_kind = VARIATE_VARIANCE_RANGE; });
  refuse("variance_kind", [](Args& a) {
    const int kind = 3;
    std::memcpy(&a.variance_kind, &kind, sizeof kind);
  });
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (double value : {-0.5, 1.5, nan}) {
    refuse("rescale", [=](Args& a) { a.rescale = value; });
    refuse("quantile", [=](Args& a) { a.quantile = value; });
  }
  refuse("clip", [=](Args& a) { a.clip = nan; });
  refuse("copies", [](Args& a) { a.next = a.prev; });
  refuse("workspace", [](Args& a) { a.quantile = 0.5; });
  CHECK(variate_denoise_step_workspace(nullptr) == 0);
  Args plain = good;
  plain.row = 1;
  plain.noise.key = nullptr;  // a row without noise needs none
  std::vector<float> prev(64);
  plain.prev = view(prev, 16);
  CHECK_OK(variate_denoise_step(&plain));
  for (float x : prev) CHECK(x == 1.0f);
  CHECK(counter[0] == 4 && counter[1] == 0);
}

void test_diffusion() {
  static const std::vector<double> levels = {1.0, 0.0, 0.6, 0.8};
  static const std::vector<float> data(64, 0.5f);
  static std::vector<std::int64_t> timestep = {0, 1, 1, 0};
  static std::vector<float> target(64);
  auto good = make<variate_noise_and_target_args>(4, 16);
  good.noise.key = key;
  good.levels = view(levels, 2);
  good.table_size = 2;
  good.timestep = view(timestep, 1, 0);
  good.tokens = good.channels = 1;
  good.x0 = view(data, 16);
  good.x_t = view(out, 16);
  good.target = view(target, 16);
  const auto refuse = [&](const char* word, auto change) {
    auto args = good;
    change(args);
    CHECK_REFUSED(variate_noise_and_target, args, word);
  };
  refuse("struct_size", [](auto& a) { a.struct_size -= 8; });
  refuse("noise.key", [](auto& a) { a.noise.key = nullptr; });
  refuse("prediction", [](auto& a) { a.prediction = static_cast<variate_prediction>(5); });
  refuse("sigma_data", [](auto& a) { a.prediction = VARIATE_PREDICT_EDM; });
  for (std::int64_t parts : {int64_min, std::int64_t{0}, std::int64_t{3}, std::int64_t{17}, int64_max}) {
    refuse("tokens", [=](auto& a) { a.tokens = parts; });
    refuse("channels", [=](auto& a) { a.channels = parts; });
  }
  refuse("levels", [](auto& a) { a.levels = {}; });
  refuse("levels", [](auto& a) { a.levels.dtype = VARIATE_INT64; });
  for (std::int64_t size : {int64_min, std::int64_t{-1}, std::int64_t{0}}) {
    refuse("table_size", [=](auto& a) { a.table_size = size; });
  }
  refuse("timestep must lie in [0, 1), got 1", [](auto& a) { a.table_size = 1; });
  timestep[3] = -1;
  refuse("timestep must lie in [0, 2), got -1", [](auto&) {});
  timestep[3] = 0;
  refuse("timestep", [](auto& a) { a.timestep.dtype = VARIATE_FLOAT32; });
  refuse("table_size must be rows * tokens", [](auto& a) { a.timestep = {}; });
  refuse("x0", [](auto& a) { a.x0.data = nullptr; });
  refuse("drawn", [](auto& a) { a.drawn = a.timestep; });
  refuse("mask", [](auto& a) { a.mask = a.x0; });
  refuse("x_t", [](auto& a) { a.x_t = {}; });
  refuse("target", [](auto& a) { a.target = {}; });
  auto told = good;  // noise that is told needs no key
  told.noise.key = nullptr;
  told.drawn = told.x0;
  told.x_t = told.target;
  CHECK_OK(variate_noise_and_target(&told));

  auto loss = make<variate_denoising_loss_args>(4, 16);
  loss.prediction = loss.target = view(data, 16);
  loss.loss = view(out, 1);
  const auto refuse_loss = [&](const char* word, auto change) {
    auto args = loss;
    change(args);
    CHECK_REFUSED(variate_denoising_loss, args, word);
  };
  refuse_loss("penalty", [](auto& a) { a.penalty = static_cast<variate_penalty>(2); });
  refuse_loss("delta", [](auto& a) { a.penalty = VARIATE_HUBER; });
  refuse_loss("prediction", [](auto& a) { a.prediction = {}; });
  refuse_loss("target", [](auto& a) { a.target.dtype = VARIATE_UINT8; });
  refuse_loss("weight", [](auto& a) { a.weight = {timestep.data(), VARIATE_INT64, 1, 0}; });
  refuse_loss("mask", [](auto& a) { a.mask = a.prediction; });
  refuse_loss("loss", [](auto& a) { a.loss.dtype = VARIATE_FLOAT16; });
  refuse_loss("cols", [](auto& a) { a.cols = -1; });
  refuse_loss("workspace", [](auto& a) { a.cols = 5000; });
  CHECK(variate_denoising_loss_workspace(nullptr) == 0);

  auto backward = make<variate_denoising_loss_backward_args>(4, 16);
  backward.prediction = backward.target = loss.prediction;
  backward.grad_prediction = view(out, 16);
  CHECK_REFUSED(variate_denoising_loss_backward, backward, "grad_loss");
  backward.grad_loss = view(data, 1);
  backward.ready = 2;
  CHECK_REFUSED(variate_denoising_loss_backward, backward, "ready");
}

void test_averages() {
  static const std::vector<float> parameter(8, 1.0f);
  static const std::vector<double> decay = {0.5, 0.5};
  static const std::int64_t sizes[] = {8, 0};
  static const variate_dtype dtypes[] = {VARIATE_FLOAT32, VARIATE_FLOAT32, VARIATE_FLOAT32, VARIATE_FLOAT32};
  static void* averages[] = {out.data(), nullptr, out.data() + 8, nullptr};
  static const void* parameters[] = {parameter.data(), nullptr};
  variate_ema_update_args good = {};
  good.struct_size = sizeof good;
  good.tensors = good.profiles = 2;
  good.sizes = sizes;
  good.averages = averages;
  good.parameters = parameters;
  good.average_dtypes = good.parameter_dtypes = dtypes;
  good.decay = view(decay, 1);
  const auto refuse = [&](const char* word, auto change) {
    auto args = good;
    change(args);
    CHECK_REFUSED(variate_ema_update, args, word);
  };
  refuse("struct_size", [](auto& a) { a.struct_size += 8; });
  refuse("tensors", [](auto& a) { a.tensors = -1; });
  refuse("profiles", [](auto& a) { a.profiles = int64_min; });
  refuse("sizes", [](auto& a) { a.sizes = nullptr; });
  refuse("sizes", [](auto& a) {
    static const std::int64_t negative[] = {8, -1};
    a.sizes = negative;
  });
  refuse("averages", [](auto& a) { a.average_dtypes = nullptr; });
  refuse("averages[3]", [](auto& a) {
    static const std::int64_t full[] = {8, 8};
    static const void* there[] = {parameter.data(), parameter.data()};
    static void* missing[] = {out.data(), out.data(), out.data(), nullptr};
    a.sizes = full;
    a.parameters = there;
    a.averages = missing;
  });
  refuse("parameters[0]", [](auto& a) {
    static const variate_dtype integers[] = {VARIATE_INT64, VARIATE_INT64};
    a.parameter_dtypes = integers;
  });
  refuse("decay", [](auto& a) { a.decay = {}; });
  good.tensors = 0;
  good.sizes = nullptr;
  CHECK_OK(variate_ema_update(&good));
  CHECK(untouched());
}

}  // namespace

int main() {
  test_draws();
  test_diffusion();
  test_averages();
  test_denoising();
  test_rbm();
  test_annealing();
  test_tempering();
  test_other_noise_calls();
  test_reductions();
  test_evidence_terms();
  test_categories();
  test_satisfies();
  test_bound();
  test_linear();
  test_samples();
  test_relaxed();
  test_workspace();
  test_logistic();
  test_potts();
  test_ising();
  test_device();
  test_empty();
  test_last_error();
  return check::finish();
}
