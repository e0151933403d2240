// Which instruction set runs: chosen once, from CPUID, the state the operating system saves, and VARIATE_CPU.
#include <cstdlib>
#include <cstring>
#include <string>

#include <variate/math/logistic.hpp>

#include "image.h"
#include "kernels.h"
#include "lattice.h"
#include "rbm.h"
#include "tile.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(VARIATE_AMX_KERNELS)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace variate::cpu {

namespace portable {
extern const Kernels table;
}
#if defined(VARIATE_X86_KERNELS)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif
#if defined(VARIATE_AMX_KERNELS)
namespace amx {
void rbm_gibbs(const variate_rbm_gibbs_args&);
void rbm_anneal(const variate_rbm_anneal_args&);
void rbm_temper(const variate_rbm_temper_args&);
}  // namespace amx
#endif

namespace {

struct InstructionSet {
  const char* name;
  const Kernels& (*table)();
  bool (*available)();
};

#if defined(VARIATE_X86_KERNELS)
struct Features {
  bool avx2 = false;
  bool avx512 = false;
  bool amx = false;
};

Features detect() {
  unsigned a, b, c, d;
  Features found;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  const bool osxsave = c & bit_OSXSAVE;
  const bool fma = (c & bit_FMA) && (c & bit_AVX) && (c & bit_F16C);
  if (!osxsave || !fma || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  const bool ymm_saved = (low & 0x06) == 0x06;
  const bool zmm_saved = (low & 0xe6) == 0xe6;
  found.avx2 = ymm_saved && (b & bit_AVX2);
  found.avx512 =
      found.avx2 && zmm_saved && (b & bit_AVX512F) && (b & bit_AVX512DQ) && (b & bit_AVX512BW) && (b & bit_AVX512VL);
  constexpr unsigned tiles = 1u << 24 | 1u << 25;  // AMX-TILE and AMX-INT8
  const bool tiles_saved = (low & 0x60000) == 0x60000;
  found.amx = found.avx512 && tiles_saved && (d & tiles) == tiles;
  return found;
}
#endif

#if defined(VARIATE_AMX_KERNELS)
// Linux saves tiles for a process that has asked for it.
bool tiles_granted() {
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

// The kernels that gain by tiles; AVX-512's else.
const Kernels& amx_table() {
  static const Kernels table = [] {
    Kernels kernels = avx512::table;
    kernels.rbm_gibbs = amx::rbm_gibbs;
    kernels.rbm_anneal = amx::rbm_anneal;
    kernels.rbm_temper = amx::rbm_temper;
    return kernels;
  }();
  return table;
}
#endif

const InstructionSet sets[] = {
    {"portable", []() -> const Kernels& { return portable::table; }, [] { return true; }},
#if defined(VARIATE_X86_KERNELS)
    {"avx2", []() -> const Kernels& { return avx2::table; }, [] { return detect().avx2; }},
    {"avx512", []() -> const Kernels& { return avx512::table; }, [] { return detect().avx512; }},
#endif
#if defined(VARIATE_AMX_KERNELS)
    {"amx", amx_table, [] { return detect().amx && tiles_granted(); }},
#endif
};

// VARIATE_CPU lowers the choice; a set that the machine lacks, or an unknown name, leaves the best one.
const InstructionSet& choose() {
  const char* wanted = std::getenv("VARIATE_CPU");
  const InstructionSet* best = &sets[0];
  for (const InstructionSet& set : sets) {
    if (!set.available()) continue;
    best = &set;
    if (wanted && std::strcmp(wanted, set.name) == 0) break;
  }
  return *best;
}

const InstructionSet& chosen() {
  static const InstructionSet& set = choose();
  return set;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& table = chosen().table();
  return table;
}

uint64_t row_sum_workspace(int64_t rows, int64_t cols) {
  return cols <= tile_elements ? 0 : sizeof(double) * rows * ((cols - 1) / tile_elements + 1);
}

// Rows for the channels of one image of parameters, where they are not used in place.
template <class Args>
static int64_t rows_of(const variate_image& image, const Args& a) {
  const bool in_place = rows_in_place(image, a.pixels, is_wide(a.params, a.target));
  return in_place ? 0 : math::count_of({a.channels, a.mixtures});
}

int64_t mixture_rows(const variate_discretized_logistic_mixture_nll_args& a) {
  return rows_of(a.params, a) + a.mixtures;
}

int64_t mixture_backward_rows(const variate_discretized_logistic_mixture_nll_backward_args& a) {
  return rows_of(a.params, a) + rows_of(a.grad_params, a) + 2 * a.mixtures;
}

uint64_t mixture_workspace(const variate_discretized_logistic_mixture_nll_args& a) {
  return ImageWorkspace::size(Blocks(a.batch, a.pixels), mixture_rows(a), is_wide(a.params, a.target),
                              a.execution.threads);
}

uint64_t mixture_backward_workspace(const variate_discretized_logistic_mixture_nll_backward_args& a) {
  return ImageWorkspace::size(Blocks(a.batch, a.pixels), mixture_backward_rows(a), is_wide(a.params, a.target),
                              a.execution.threads);
}

uint64_t ising_workspace(const variate_ising_gibbs_args& a) {
  const LatticeLayout layout = layout_of(a);
  return LatticeWorkspace(a, layout).size(layout, a.execution.threads);
}

uint64_t ising_workspace(const variate_ising_measure_args& a) {
  const LatticeLayout layout = layout_of(a);
  const uint64_t row_bits = sizeof(uint64_t) * (2 * static_cast<uint64_t>(a.lattice.width) / 64 + 2);
  return LatticeWorkspace(a, layout).size(layout, 1) + row_bits;
}

uint64_t rbm_workspace(const variate_rbm_gibbs_args& a) { return RbmPlan(a, 0).bytes; }
uint64_t rbm_workspace(const variate_rbm_anneal_args& a) { return RbmPlan(rows_of(a), 0).bytes; }
uint64_t rbm_workspace(const variate_rbm_temper_args& a) { return RbmPlan(rows_of(a), 0, a.temperatures).bytes; }

// Two numbers a row, and a row of magnitudes a thread.
uint64_t denoise_workspace(const variate_denoise_step_args& a) {
  if (!(a.rescale > 0.0 || a.quantile > 0.0)) return 0;
  const uint64_t element = a.sample.dtype == VARIATE_FLOAT64 ? sizeof(double) : sizeof(float);
  const uint64_t threads = a.quantile > 0.0 ? (a.execution.threads > 1 ? a.execution.threads : 1) : 0;
  return 2 * sizeof(double) * static_cast<uint64_t>(a.rows) + threads * static_cast<uint64_t>(a.cols) * element;
}

uint64_t column_sum_workspace(int64_t rows, int64_t cols) {
  const uint64_t blocks = (static_cast<uint64_t>(rows) + column_sum_rows - 1) / column_sum_rows;
  uint64_t bytes;
  const bool overflows = __builtin_mul_overflow(blocks * sizeof(double), static_cast<uint64_t>(cols), &bytes);
  return overflows ? UINT64_MAX : bytes;
}

}  // namespace variate::cpu

extern "C" {

VARIATE_API const char* variate_cpu_capability(void) { return variate::cpu::chosen().name; }

VARIATE_API const char* variate_cpu_capabilities(void) {
  static const std::string names = [] {
    std::string text;
    for (const auto& set : variate::cpu::sets) {
      if (set.available()) text += (text.empty() ? "" : " ") + std::string(set.name);
    }
    return text;
  }();
  return names.c_str();
}

VARIATE_API int variate_has_openmp(void) {
#ifdef _OPENMP
  return 1;
#else
  return 0;
#endif
}
}
