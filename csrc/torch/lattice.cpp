#include "ops.h"

namespace variate::torch_ops {

namespace {

// [chains, height, width] or [chains, depth, height, width] of spins; of words, a colour before and words at the end.
variate_lattice lattice_of(const Tensor& tensor, int64_t first, int64_t dimensions, int64_t width, bool open) {
  STD_TORCH_CHECK(dimensions == 2 || dimensions == 3, "lattices have two or three dimensions");
  variate_lattice lattice = {};
  lattice.dimensions = static_cast<int32_t>(dimensions);
  lattice.boundary = open ? VARIATE_OPEN : VARIATE_PERIODIC;
  lattice.depth = dimensions == 3 ? tensor.size(first) : 1;
  lattice.height = tensor.size(first + dimensions - 2);
  lattice.width = width;
  return lattice;
}

// Packed words [chains, 2, *shape[:-1], words].
struct Words {
  variate_lattice lattice;
  int64_t chains;
  uint32_t* data;

  Words(const Tensor& words, int64_t width, bool open)
      : lattice(lattice_of(words, 2, words.dim() - 2, width, open)),
        chains(words.size(0)),
        data(static_cast<uint32_t*>(words.mutable_data_ptr())) {
    check_words(words);
  }

  // Of what is laid out as the words are, with another number in front.
  const uint32_t* bonds_of(const OptionalTensor& bonds, const Tensor& words) const {
    if (!bonds) return nullptr;
    check_words(*bonds);
    STD_TORCH_CHECK(bonds->dim() == words.dim() && bonds->size(0) == 2 * lattice.dimensions,
                    "bonds must be packed, two for each dimension");
    for (int64_t d = 2; d < words.dim(); ++d) {
      STD_TORCH_CHECK(bonds->size(d) == words.size(d), "bonds must be those of the lattice of words");
    }
    STD_TORCH_CHECK(bonds->is_cuda() == words.is_cuda(), "bonds must be on the device of words");
    return static_cast<const uint32_t*>(bonds->mutable_data_ptr());
  }

 private:
  void check_words(const Tensor& words) const {
    STD_TORCH_CHECK(words.scalar_type() == ScalarType::Int && words.is_contiguous() && words.size(1) == 2 &&
                        words.size(words.dim() - 1) == variate_lattice_words(lattice.width),
                    "words must be contiguous int32 of [chains, 2, ..., words]");
  }
};

variate_tensor number(const Tensor& tensor, int64_t chains, const Tensor& like) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Double && tensor.dim() <= 1 &&
                      (tensor.numel() == 1 || tensor.numel() == chains),
                  "beta, coupling and field must be float64, one number or one for each chain");
  STD_TORCH_CHECK(tensor.is_cuda() == like.is_cuda(), "beta, coupling and field must be on the device of words");
  variate_tensor view = column(tensor);
  if (tensor.numel() == 1) view.row_stride = 0;
  return view;
}

Tensor ising_pack(Tensor spins, int64_t dimensions, bool open) {
  STD_TORCH_CHECK(spins.scalar_type() == ScalarType::Char && spins.dim() == dimensions + 1,
                  "spins must be int8 of [chains, ...]");
  const Tensor dense = torch::stable::contiguous(spins);
  const int64_t width = spins.size(dimensions);
  std::vector<int64_t> sizes = {spins.size(0), 2};
  for (int64_t d = 1; d < dimensions; ++d) sizes.push_back(spins.size(d));
  sizes.push_back(variate_lattice_words(width));
  Tensor words = new_tensor(sizes, ScalarType::Int, spins);
  const Execution execution(spins);
  variate_ising_pack_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.lattice = lattice_of(spins, 1, dimensions, width, open);
  args.chains = spins.size(0);
  args.spins = static_cast<int8_t*>(dense.mutable_data_ptr());
  args.words = static_cast<uint32_t*>(words.mutable_data_ptr());
  check(variate_ising_pack(&args));
  return words;
}

Tensor ising_unpack(Tensor words, int64_t width) {
  const Words view(words, width, true);
  std::vector<int64_t> sizes = {view.chains};
  for (int64_t d = 2; d + 1 < words.dim(); ++d) sizes.push_back(words.size(d));
  sizes.push_back(width);
  Tensor spins = new_tensor(sizes, ScalarType::Char, words);
  const Execution execution(words);
  variate_ising_pack_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.lattice = view.lattice;
  args.chains = view.chains;
  args.spins = static_cast<int8_t*>(spins.mutable_data_ptr());
  args.words = view.data;
  check(variate_ising_unpack(&args));
  return spins;
}

void ising_gibbs(Tensor words, int64_t width, bool open, Tensor beta, Tensor coupling, Tensor field,
                 OptionalTensor bonds, int64_t sweeps, int64_t first_step, OptionalTensor moments,
                 int64_t measure_every, Tensor key, int64_t first_sample) {
  const Words view(words, width, open);
  const Noise noise(key, view.chains, first_sample, &words);
  Execution execution(words);
  variate_ising_gibbs_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.noise = noise.get();
  args.lattice = view.lattice;
  args.chains = view.chains;
  args.sweeps = sweeps;
  args.first_step = first_step;
  args.beta = number(beta, view.chains, words);
  args.coupling = number(coupling, view.chains, words);
  args.field = number(field, view.chains, words);
  args.bonds = view.bonds_of(bonds, words);
  args.words = view.data;
  if (moments) {
    STD_TORCH_CHECK(moments->scalar_type() == ScalarType::Double && moments->is_contiguous() &&
                        moments->numel() == view.chains * VARIATE_ISING_MOMENTS,
                    "moments must be contiguous float64 [chains, 7]");
    args.moments = static_cast<double*>(moments->mutable_data_ptr());
  }
  args.measure_every = measure_every;
  args.execution = execution.with_workspace(variate_ising_gibbs_workspace(&args));
  check(variate_ising_gibbs(&args));
}

std::tuple<Tensor, Tensor> ising_measure(Tensor words, int64_t width, bool open, OptionalTensor bonds,
                                         int64_t distance) {
  const Words view(words, width, open);
  Tensor sums = new_tensor(std::vector<int64_t>{view.chains, 2}, ScalarType::Long, words);
  Tensor correlation = new_tensor(std::vector<int64_t>{view.chains, distance}, ScalarType::Long, words);
  Execution execution(words);
  variate_ising_measure_args args = {};
  args.struct_size = sizeof args;
  args.execution = execution.get();
  args.lattice = view.lattice;
  args.chains = view.chains;
  args.bonds = view.bonds_of(bonds, words);
  args.words = view.data;
  args.sums = static_cast<int64_t*>(sums.mutable_data_ptr());
  args.distance = distance;
  args.correlation = static_cast<int64_t*>(correlation.mutable_data_ptr());
  args.execution = execution.with_workspace(variate_ising_measure_workspace(&args));
  check(variate_ising_measure(&args));
  return {sums, correlation};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(variate, library) {
  library.def("ising_pack(Tensor spins, int dimensions, bool open) -> Tensor");
  library.def("ising_unpack(Tensor words, SymInt width) -> Tensor");
  library.def(
      "ising_gibbs(Tensor(a!) words, SymInt width, bool open, Tensor beta, Tensor coupling, Tensor field, "
      "Tensor? bonds, SymInt sweeps, SymInt first_step, Tensor(b!)? moments, SymInt measure_every, Tensor key, "
      "SymInt first_sample) -> ()");
  library.def(
      "ising_measure(Tensor words, SymInt width, bool open, Tensor? bonds, SymInt distance) -> (Tensor, Tensor)");
}

template <class Library>
static void implement(Library& library) {
  library.impl("ising_pack", TORCH_BOX(&ising_pack));
  library.impl("ising_unpack", TORCH_BOX(&ising_unpack));
  library.impl("ising_gibbs", TORCH_BOX(&ising_gibbs));
  library.impl("ising_measure", TORCH_BOX(&ising_measure));
}

STABLE_TORCH_LIBRARY_IMPL(variate, CPU, library) { implement(library); }
#if defined(VARIATE_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(variate, CUDA, library) { implement(library); }
#endif

}  // namespace variate::torch_ops
