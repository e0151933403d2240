// Noise and a reparameterised sample on a GPU, without Python: through the C API, and with the same header math in a
// kernel of our own. Both print the same normals, which are also those of variate.random.normal on any device.
#include <cuda_runtime.h>
#include <variate/math/random.hpp>
#include <variate/variate.h>

#include <cstdio>
#include <cstdlib>

static void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

static void check(variate_status status, const char* what) {
  if (status == VARIATE_OK) return;
  std::fprintf(stderr, "%s: %s\n", what, variate_last_error());
  std::exit(1);
}

// One thread per counter: four normals of sample 0.
__global__ void our_normals(const int64_t* key, float* out, int64_t count) {
  const int64_t block = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const variate::math::Key own = {static_cast<uint64_t>(key[0]), static_cast<uint64_t>(key[1])};
  const variate::math::Normals normals =
      variate::math::normals(variate::math::noise_words(own, static_cast<uint64_t>(block), 0));
  for (int i = 0; i < 4; ++i) {
    if (4 * block + i < count) out[4 * block + i] = normals.x[i];
  }
}

static variate_tensor matrix(float* data, int64_t cols) { return {data, VARIATE_FLOAT32, cols, 1}; }

template <class T>
static T* allocate(int64_t count) {
  void* data = nullptr;
  check(cudaMalloc(&data, static_cast<size_t>(count) * sizeof(T)), "cudaMalloc");
  return static_cast<T*>(data);
}

template <class T>
static void print(const char* name, const T* device, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    T value;
    check(cudaMemcpy(&value, device + i, sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    std::printf("%s %.9g", i == 0 ? name : "", static_cast<double>(value));
  }
  std::printf("\n");
}

int main() {
  constexpr int64_t rows = 2;
  constexpr int64_t cols = 6;
  constexpr int64_t count = rows * cols;
  const int64_t seed_and_offset[2] = {42, 0};

  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "cudaStreamCreate");
  int64_t* key = allocate<int64_t>(2);
  check(cudaMemcpyAsync(key, seed_and_offset, sizeof(seed_and_offset), cudaMemcpyHostToDevice, stream), "copy");

  // A one-dimensional array is one sample: one row.
  float* normals = allocate<float>(count);
  variate_random_args random{};
  random.struct_size = sizeof(random);
  random.execution.device = VARIATE_CUDA;
  random.execution.stream = stream;
  random.noise.key = key;
  random.rows = 1;
  random.cols = count;
  random.out = matrix(normals, count);
  check(variate_normal(&random), "variate_normal");

  float* ours = allocate<float>(count);
  our_normals<<<1, (count + 3) / 4, 0, stream>>>(key, ours, count);
  check(cudaGetLastError(), "our_normals");

  // mean = log_var = 0: z is the noise of each row, kl is 0.
  float* zeros = allocate<float>(count);
  float* z = allocate<float>(count);
  float* kl = allocate<float>(rows);
  check(cudaMemsetAsync(zeros, 0, count * sizeof(float), stream), "cudaMemsetAsync");
  variate_normal_rsample_kl_args sample{};
  sample.struct_size = sizeof(sample);
  sample.execution = random.execution;
  sample.noise = random.noise;
  sample.rows = rows;
  sample.cols = cols;
  sample.mean = matrix(zeros, cols);
  sample.log_var = matrix(zeros, cols);
  sample.z = matrix(z, cols);
  sample.kl = matrix(kl, 1);
  sample.execution.workspace_bytes = variate_normal_rsample_kl_workspace(&sample);
  if (sample.execution.workspace_bytes > 0) {
    sample.execution.workspace = allocate<char>(static_cast<int64_t>(sample.execution.workspace_bytes));
  }
  check(variate_normal_rsample_kl(&sample), "variate_normal_rsample_kl");
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");

  std::printf("variate %s, CUDA architectures %s\n", variate_version(), variate_cuda_architectures());
  print("normal", normals, count);
  print("ours  ", ours, count);
  print("z     ", z, count);
  print("kl    ", kl, rows);

  check(cudaFree(sample.execution.workspace), "cudaFree");
  for (void* data : {static_cast<void*>(key), static_cast<void*>(normals), static_cast<void*>(ours),
                     static_cast<void*>(zeros), static_cast<void*>(z), static_cast<void*>(kl)}) {
    check(cudaFree(data), "cudaFree");
  }
  check(cudaStreamDestroy(stream), "cudaStreamDestroy");
  return 0;
}
