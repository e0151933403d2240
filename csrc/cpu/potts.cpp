#include "kernels.h"
#include "potts.h"
#include "potts_weights.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

constexpr int64_t most_words = 2048;  // of noise at a time
constexpr int lanes = 16;             // sites at least at a time

// Words of one colour of a chain, in the order of its sites.
class Stream {
 public:
  Stream(math::Key key, uint32_t sample, uint32_t step) : sample_(sample), step_(step), key_(key) {}

  // At least `count` words from `element` on, of `end` in all.
  const uint32_t* words(int64_t element, int64_t count, int64_t end) {
    if (element < begin_ || element + count > end_) {
      begin_ = element / 4 * 4;
      end_ = begin_ + most_words < end ? begin_ + most_words : end;
      BlockRange range;
      range.key = key_;
      range.first_block = static_cast<uint64_t>(begin_ / 4);
      range.first_sample = sample_;
      range.blocks = range.blocks_per_row = (end_ - begin_ + 3) / 4;
      range.step = step_;
      fill_words(range, buffer_);
    }
    return buffer_ + (element - begin_);
  }

 private:
  uint32_t sample_, step_;
  math::Key key_;
  int64_t begin_ = 0, end_ = 0;
  alignas(64) uint32_t buffer_[most_words + noise_slack + PottsLayout::vector];
};

// `n` sites from their neighbours: counts by state, weights, a draw.
template <int n, int neighbours, int fixed_q, bool in_field>
static inline void draw_states(const uint8_t* const* around, int64_t at, const Weights& weights,
                               const FieldTables& tables, int q, const uint32_t* words, uint8_t* out) {
  const int states = fixed_q ? fixed_q : q;
  Bytes<n> near[neighbours];
  for (int i = 0; i < neighbours; ++i) near[i] = load_bytes<n>(around[i] + at);
  alignas(64) uint8_t counts[fixed_q ? fixed_q : most_states][n];
  Bytes<n> most = {}, least = Bytes<n>{} + most_neighbours;
  for (int s = 0; s < states; ++s) {
    const Bytes<n> state = Bytes<n>{} + static_cast<uint8_t>(s);
    Bytes<n> count = {};
    for (int i = 0; i < neighbours; ++i) count -= reinterpret_cast<Bytes<n>>(near[i] == state);
    *reinterpret_cast<Bytes<n>*>(counts[s]) = count;
    if constexpr (!in_field) {
      most = count > most ? count : most;
      least = count < least ? count : least;
    }
  }
  const bool together = weights.coupling >= 0.0;
  for (int s = 0; s < states && !in_field; ++s) {
    Bytes<n>& count = *reinterpret_cast<Bytes<n>*>(counts[s]);
    count = together ? most - count : count - least;
  }
  for (int g = 0; g < n; g += group) {
    Group cumulative[fixed_q ? fixed_q : most_states];
    Group total = {}, likeliest = {};
    for (int s = 0; s < states && in_field; ++s) {
      const Group order = tables.order(s, widen_bytes(counts[s] + g));
      likeliest = order > likeliest ? order : likeliest;
    }
    for (int s = 0; s < states; ++s) {
      const Group count = widen_bytes(counts[s] + g);
      total += in_field ? tables.weight(s, count, likeliest) : look_up(weights.table, count);
      cumulative[s] = total;
    }
    const Group draw = multiply_high(load_group(words + g), total);
    Group drawn = {};
    for (int s = 0; s + 1 < states; ++s) drawn -= reinterpret_cast<Group>(draw >= cumulative[s]);
    store_bytes(out + g, drawn);
  }
}

// The same of sixteen sites, of many states in a field.
template <int neighbours>
void draw_in_field(const uint8_t* const* around, int64_t at, const Weights& weights, int q, const uint32_t* words,
                   uint8_t* out) {
  alignas(64) double counts[most_states][lanes];
  alignas(64) double best[lanes], best_count[lanes], best_field[lanes];
  for (int s = 0; s < q; ++s) {
    for (int i = 0; i < lanes; ++i) {
      int count = 0;
      for (int k = 0; k < neighbours; ++k) count += around[k][at + i] == s;
      counts[s][i] = count;
    }
  }
  for (int s = 0; s < q; ++s) {
    const double field = weights.field[s];
    for (int i = 0; i < lanes; ++i) {
      const double x = weights.coupling * counts[s][i] + field;
      const bool better = s == 0 || x > best[i];
      best[i] = better ? x : best[i];
      best_count[i] = better ? counts[s][i] : best_count[i];
      best_field[i] = better ? field : best_field[i];
    }
  }
  alignas(64) uint32_t cumulative[most_states][lanes];
  alignas(64) uint32_t total[lanes] = {}, drawn[lanes] = {};
  for (int s = 0; s < q; ++s) {
    for (int i = 0; i < lanes; ++i) {
      const double apart = math::potts_apart(weights.field[s], best_field[i]);
      const double x = weights.coupling * (counts[s][i] - best_count[i]) + apart;
      total[i] += math::potts_weight(x, weights.scale);
      cumulative[s][i] = total[i];
    }
  }
  for (int i = 0; i < lanes; ++i) total[i] = static_cast<uint32_t>(static_cast<uint64_t>(words[i]) * total[i] >> 32);
  for (int s = 0; s + 1 < q; ++s) {
    for (int i = 0; i < lanes; ++i) drawn[i] += total[i] >= cumulative[s][i];
  }
  for (int i = 0; i < lanes; ++i) out[i] = static_cast<uint8_t>(drawn[i]);
}

// One lattice while it is swept.
struct Chain {
  const variate_potts_gibbs_args& a;
  PottsLayout layout;
  uint8_t* states;
  int64_t index;
  Weights weights;
  FieldTables tables;
  bool tabulated;

  Chain(const variate_potts_gibbs_args& a_, uint8_t* states_, int64_t index_)
      : a(a_),
        layout(a_.lattice),
        states(states_),
        index(index_),
        weights(a_, index_),
        tabulated(weights.any_field &&
                  tables.make(weights, a_.categories, layout.rows * a_.lattice.width * a_.sweeps)) {}

  int parity(int64_t r, int colour) const {
    return static_cast<int>((r / a.lattice.height + r % a.lattice.height + colour) & 1);
  }
  int64_t sites(int64_t r, int colour) const { return math::sites_in_row(a.lattice.width, parity(r, colour)); }
  bool open() const { return a.lattice.boundary == VARIATE_OPEN; }
  uint8_t* given() const { return a.states + index * layout.rows * a.lattice.width; }

  void wrap(int64_t r, int colour) const {
    uint8_t* row = states + layout.row(r, colour);
    const int64_t count = sites(r, colour);
    row[-1] = open() ? PottsLayout::nothing : row[count - 1];
    row[count] = open() ? PottsLayout::nothing : row[0];
  }

  void load(int64_t r) const {
    const uint8_t* from = given() + r * a.lattice.width;
    for (int colour = 0; colour < 2; ++colour) {
      uint8_t* row = states + layout.row(r, colour);
      const int64_t count = sites(r, colour), first = parity(r, colour);
      for (int64_t i = 0; i < count; ++i) row[i] = from[2 * i + first];
      if (count > 0) {
        wrap(r, colour);
      } else {
        row[-1] = row[0] = PottsLayout::nothing;
      }
    }
  }

  void store(int64_t r) const {
    uint8_t* to = given() + r * a.lattice.width;
    for (int colour = 0; colour < 2; ++colour) {
      const uint8_t* row = states + layout.row(r, colour);
      const int64_t count = sites(r, colour), first = parity(r, colour);
      for (int64_t i = 0; i < count; ++i) to[2 * i + first] = row[i];
    }
  }

  // Row r + step along a dimension of this length, of the other colour.
  const uint8_t* beside(int64_t r, int64_t place, int64_t length, int64_t apart, int step, int colour) const {
    const int64_t other = place + step;
    if (other >= 0 && other < length) return states + layout.row(r + step * apart, colour);
    if (open()) return states + layout.beyond();
    return states + layout.row(r - step * apart * (length - 1), colour);
  }

  template <int neighbours>
  void update(int64_t r, int colour, Stream& stream) const {
    const int64_t count = sites(r, colour), height = a.lattice.height;
    const int q = static_cast<int>(a.categories);
    if (count == 0) return;
    uint8_t* row = states + layout.row(r, colour);
    const uint8_t* own = states + layout.row(r, 1 - colour);
    const uint8_t* around[neighbours] = {own, parity(r, colour) ? own + 1 : own - 1,
                                         beside(r, r % height, height, 1, -1, 1 - colour),
                                         beside(r, r % height, height, 1, 1, 1 - colour)};
    if constexpr (neighbours == 6) {
      around[4] = beside(r, r / height, a.lattice.depth, height, -1, 1 - colour);
      around[5] = beside(r, r / height, a.lattice.depth, height, 1, 1 - colour);
    }
    const int64_t first = (colour * layout.rows + r) * layout.half;
    const int64_t end = (colour + 1) * layout.rows * layout.half;
    constexpr int64_t piece = most_words / 2;
    for (int64_t start = 0; start < count; start += piece) {
      const int64_t stop = count - start < piece ? count : start + piece;
      const uint32_t* words = stream.words(first + start, stop - start, end) - start;
      int64_t i = start;
      if (weights.any_field && !tabulated) {
        for (; i < stop; i += lanes) draw_in_field<neighbours>(around, i, weights, q, words + i, row + i);
        continue;
      }
      const auto draw = [&]<bool in_field>() {
        for (; stop - i > lanes; i += native) some<native, neighbours, in_field>(around, i, q, words + i, row + i);
        for (; i < stop; i += lanes) some<lanes, neighbours, in_field>(around, i, q, words + i, row + i);
      };
      tabulated ? draw.template operator()<true>() : draw.template operator()<false>();
    }
    wrap(r, colour);
  }

  template <int n, int neighbours, bool in_field>
  void some(const uint8_t* const* around, int64_t at, int q, const uint32_t* words, uint8_t* out) const {
    const auto draw = [&]<int fixed_q>() {
      draw_states<n, neighbours, fixed_q, in_field>(around, at, weights, tables, q, words, out);
    };
    switch (q) {
      case 2: return draw.template operator()<2>();
      case 3: return draw.template operator()<3>();
      case 4: return draw.template operator()<4>();
      default: return draw.template operator()<0>();
    }
  }

  // Rows [begin, end) of one colour.
  void half_sweep(int64_t sweep, int colour, int64_t begin, int64_t end) const {
    const uint32_t step = static_cast<uint32_t>(static_cast<uint64_t>(a.first_step) + static_cast<uint64_t>(sweep));
    const uint32_t sample = a.noise.key_stride ? 0 : static_cast<uint32_t>(a.noise.first_sample + index);
    Stream stream(key_of(a.noise, index), sample, step);
    for (int64_t r = begin; r < end; ++r) {
      a.lattice.dimensions == 2 ? update<4>(r, colour, stream) : update<6>(r, colour, stream);
    }
  }
};

}  // namespace

void potts_gibbs(const variate_potts_gibbs_args& a) {
  const PottsLayout layout(a.lattice);
  const int64_t copies = PottsLayout::copies(a);
  const int threads = a.execution.threads > 1 ? a.execution.threads : 1;
  uint8_t* buffer = static_cast<uint8_t*>(a.execution.workspace);
  std::memset(buffer, PottsLayout::nothing, static_cast<std::size_t>(copies * layout.size()));
  if (copies > 1 || threads == 1) {
#pragma omp parallel for schedule(static) num_threads(threads) if (copies > 1)
    for (int64_t copy = 0; copy < copies; ++copy) {
      for (int64_t c = copy; c < a.chains; c += copies) {
        const Chain chain(a, buffer + copy * layout.size(), c);
        for (int64_t r = 0; r < layout.rows; ++r) chain.load(r);
        for (int64_t sweep = 0; sweep < a.sweeps; ++sweep) {
          for (int colour = 0; colour < 2; ++colour) chain.half_sweep(sweep, colour, 0, layout.rows);
        }
        for (int64_t r = 0; r < layout.rows; ++r) chain.store(r);
      }
    }
    return;
  }
  // Few chains: the rows of a colour do not see each other.
  const bool parallel = layout.rows * a.lattice.width >= parallel_grain;
  for (int64_t c = 0; c < a.chains; ++c) {
    const Chain chain(a, buffer, c);
    for (int64_t r = 0; r < layout.rows; ++r) chain.load(r);
    for (int64_t half = 0; half < 2 * a.sweeps; ++half) {
#pragma omp parallel for schedule(static) num_threads(threads) if (parallel)
      for (int part = 0; part < threads; ++part) {
        chain.half_sweep(half / 2, static_cast<int>(half % 2), layout.rows * part / threads,
                         layout.rows * (part + 1) / threads);
      }
    }
    for (int64_t r = 0; r < layout.rows; ++r) chain.store(r);
  }
}

}  // namespace variate::cpu::VARIATE_ISA
