// As much of CUDA as a kernel needs to run on the host, one block after another: what a compiler and a CPU can tell of
// a kernel where there is no GPU. The threads of a block are contexts that take turns: each runs until it waits for its
// block or its warp. Speed, memory models and the order of atomics are not those of a GPU.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block at a time

using std::max;
using std::min;

struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 threadIdx, blockIdx, blockDim;
inline uint4* dynamic_shared = nullptr;

namespace emulated {

inline int multiprocessors = 2;
inline int shared_bytes = 227 * 1024;  // of a block, at most
inline int launches = 0;

inline void require(bool condition, const char* message) {
  if (condition) return;
  std::fprintf(stderr, "emulated CUDA: %s\n", message);
  std::abort();
}

// Threads that wait for one another.
struct Barrier {
  int members;
  int arrived = 0;
  int generation = 0;
};

class Block {
 public:
  static Block& current() {
    static Block block;
    return block;
  }

  void run(int count, const std::function<void()>& body) {
    constexpr std::size_t stack_bytes = 65536;
    require(count % warp == 0 && count <= 1024, "blocks are whole warps, at most 1024 threads");
    body_ = &body;
    block_ = {count};
    warps_.assign(static_cast<std::size_t>(count / warp), Barrier{warp});
    values_.resize(static_cast<std::size_t>(count));
    while (threads_.size() < static_cast<std::size_t>(count)) {
      threads_.push_back({{}, std::unique_ptr<char[]>(new char[stack_bytes]), false});
    }
    for (int i = 0; i < count; ++i) {
      Thread& thread = threads_[static_cast<std::size_t>(i)];
      thread.done = false;
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.get();
      thread.context.uc_stack.ss_size = stack_bytes;
      thread.context.uc_link = &home_;
      makecontext(&thread.context, enter, 0);
    }
    for (bool left = true; left;) {
      left = progress_ = false;
      for (thread_ = 0; thread_ < count; ++thread_) {
        if (here().done) continue;
        threadIdx = dim3(static_cast<unsigned>(thread_));
        swapcontext(&home_, &here().context);
        left |= !here().done;
      }
      require(!left || progress_, "every thread waits: a barrier that not all of them reach");
    }
  }

  void sync_block() { wait(block_); }
  void sync_warp() { wait(warps_[static_cast<std::size_t>(thread_ / warp)]); }

  // combine(the values of the warp's threads)
  template <class Combine>
  std::uint64_t exchange(std::uint64_t value, Combine combine) {
    values_[static_cast<std::size_t>(thread_)] = value;
    sync_warp();
    const std::uint64_t result = combine(values_.data() + thread_ / warp * warp);
    sync_warp();
    return result;
  }

  static constexpr int warp = 32;

 private:
  struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool done;
  };

  Thread& here() { return threads_[static_cast<std::size_t>(thread_)]; }

  static void enter() {
    Block& block = current();
    (*block.body_)();
    block.here().done = block.progress_ = true;
  }

  void wait(Barrier& barrier) {
    progress_ = true;
    const int generation = barrier.generation;
    if (++barrier.arrived == barrier.members) {
      barrier.arrived = 0;
      ++barrier.generation;
      return;
    }
    while (barrier.generation == generation) swapcontext(&here().context, &home_);
    progress_ = true;
  }

  std::vector<Thread> threads_;
  std::vector<Barrier> warps_;
  std::vector<std::uint64_t> values_;
  Barrier block_{0};
  ucontext_t home_;
  const std::function<void()>* body_ = nullptr;
  int thread_ = 0;
  bool progress_ = false;
};

}  // namespace emulated

inline void __syncthreads() { emulated::Block::current().sync_block(); }
inline void __syncwarp() { emulated::Block::current().sync_warp(); }

template <class Combine>
unsigned emulated_exchange(unsigned mask, std::uint64_t value, Combine combine) {
  emulated::require(mask == ~0u, "only whole warps");
  return static_cast<unsigned>(emulated::Block::current().exchange(value, combine));
}

inline unsigned __all_sync(unsigned mask, bool predicate) {
  return emulated_exchange(mask, predicate, [](const std::uint64_t* v) { return *std::min_element(v, v + 32); });
}
inline unsigned __shfl_sync(unsigned mask, unsigned value, int lane) {
  return emulated_exchange(mask, value, [lane](const std::uint64_t* v) { return v[lane]; });
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  return emulated_exchange(mask, value, [](const std::uint64_t* v) { return *std::min_element(v, v + 32); });
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return emulated_exchange(mask, value, [](const std::uint64_t* v) {
    std::uint64_t sum = 0;
    for (int i = 0; i < 32; ++i) sum += v[i];
    return sum;
  });
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<std::uint64_t>(high) << 32 | low) >> shift % 32);
}
template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T atomicAdd(T* to, std::type_identity_t<T> value) {
  const T before = *to;
  *to += value;
  return before;
}
template <class T>
T atomicOr(T* to, std::type_identity_t<T> value) {
  const T before = *to;
  *to |= value;
  return before;
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t) { return ""; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? emulated::multiprocessors : emulated::shared_bytes;
  return cudaSuccess;
}
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*)(Parameters...), cudaFuncAttribute, int) {
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  emulated::require(config->dynamicSmemBytes <= static_cast<std::size_t>(emulated::shared_bytes),
                    "more shared memory than a block can have");
  ++emulated::launches;
  std::vector<uint4> shared(config->dynamicSmemBytes / sizeof(uint4) + 1);
  dynamic_shared = shared.data();
  ::blockDim = config->blockDim;
  for (unsigned block = 0; block < config->gridDim.x; ++block) {
    std::memset(static_cast<void*>(shared.data()), 0xa5, shared.size() * sizeof(uint4));  // nothing to rely on
    ::blockIdx = dim3(block);
    emulated::Block::current().run(static_cast<int>(config->blockDim.x),
                                   [&] { kernel(static_cast<Parameters>(arguments)...); });
  }
  return cudaSuccess;
}
