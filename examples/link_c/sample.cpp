// The same numbers as sample.c, from C++: a small wrapper around the C API, and the header math without the library.
#include <variate/math/random.hpp>
#include <variate/variate.h>

#include <cstdio>
#include <stdexcept>
#include <vector>

namespace {

// Fills in what every call needs, lends it a workspace, and turns a bad status into an exception.
template <class Args>
Args make(std::int64_t rows, std::int64_t cols) {
  Args args{};  // zeros: a tensor without data is left out, device 0 is the CPU
  args.struct_size = sizeof args;
  args.execution.threads = 2;  // changes no bit of the results
  args.rows = rows;
  args.cols = cols;
  return args;
}

template <class Args>
void call(variate_status (*function)(const Args*), Args args, std::uint64_t (*workspace_bytes)(const Args*) = nullptr) {
  std::vector<char> workspace(workspace_bytes ? workspace_bytes(&args) : 0);
  args.execution.workspace = workspace.data();
  args.execution.workspace_bytes = workspace.size();
  if (function(&args) != VARIATE_OK) throw std::runtime_error(variate_last_error());
}

variate_tensor tensor(std::vector<float>& x, std::int64_t cols) { return {x.data(), VARIATE_FLOAT32, cols, 1}; }
variate_tensor tensor(std::vector<std::uint8_t>& x, std::int64_t cols) { return {x.data(), VARIATE_UINT8, cols, 1}; }

void print(const char* name, const std::vector<float>& x) {
  std::printf("%s", name);
  for (float value : x) std::printf(" %a", static_cast<double>(value));
  std::printf("\n");
}

// The noise without a call: four normals from one counter of the key, in a function that inlines into a loop.
std::vector<float> own_normals(variate::math::Key key, std::uint32_t rows, std::size_t cols) {
  std::vector<float> out;
  for (std::uint32_t row = 0; row < rows; ++row) {
    for (std::size_t col = 0; col < cols; ++col) {
      const variate::math::Words words = variate::math::noise_words(key, col / 4, row);
      out.push_back(variate::math::normals(words).x[col % 4]);
    }
  }
  return out;
}

}  // namespace

int main() {
  constexpr std::int64_t rows = 2, cols = 6;
  const std::int64_t key[2] = {42, 0};
  const variate_noise noise = {key, 0, 0};  // one key for all rows, of which the first is sample 0

  std::vector<float> normals(rows * cols);
  auto draw = make<variate_random_args>(rows, cols);
  draw.noise = noise;
  draw.out = tensor(normals, cols);
  call(variate_normal, draw);
  print("normal", normals);
  print("own", own_normals({42, 0}, rows, cols));

  std::vector<float> mean(rows * cols), log_var(rows * cols), z(rows * cols), kl(rows);
  for (int i = 0; i < rows * cols; ++i) {
    mean[i] = 0.25f * static_cast<float>(i) - 1.0f;
    log_var[i] = 0.5f - 0.125f * static_cast<float>(i);
  }
  auto sample = make<variate_normal_rsample_kl_args>(rows, cols);
  sample.noise = noise;
  sample.mean = tensor(mean, cols);
  sample.log_var = tensor(log_var, cols);
  sample.z = tensor(z, cols);
  sample.kl = tensor(kl, 1);
  call(variate_normal_rsample_kl, sample, variate_normal_rsample_kl_workspace);
  print("z", z);
  print("kl", kl);

  std::vector<std::uint8_t> target(rows * cols);
  for (int i = 0; i < rows * cols; ++i) target[i] = i % 3 == 0;
  std::vector<float> nll(rows);
  auto likelihood = make<variate_bernoulli_nll_args>(rows, cols);
  likelihood.logits = tensor(z, cols);
  likelihood.target = tensor(target, cols);
  likelihood.nll = tensor(nll, 1);
  call(variate_bernoulli_nll, likelihood, variate_bernoulli_nll_workspace);
  print("nll", nll);
  return 0;
}
