// Sites that the digits of the planes leave undecided, 1 in 256: sixteen at a time.
#pragma once

#include <initializer_list>

#include "chains.h"

namespace variate::cpu::VARIATE_ISA {

// A queue of words that have such sites: their neighbours' counts, where they lie and whose thresholds are theirs. A
// word comes once for each of its sites.
class Undecided {
 public:
  Undecided(const Chains& chains, int colour, uint32_t step)
      : chains_(chains),
        step_(step),
        sites_apart_(chains.layout.chains_in_lanes() ? 0 : 64),
        colour_(chains.colour[colour]) {
    begin_at(0, 0);
  }

  // Those of a vector of words from `words` on, whose lane 0 begins with site `first_site`. `missing` neighbours are
  // beyond the boundary, and of lonely sites one more; of `whole` rows none.
  template <bool whole>
  void add(uint32_t* words, int64_t first_site, int missing, const Word& lonely, const math::BitCount<Word>& n,
           const Word& undecided) {
    if (words - colour_ - first_word_ >= far || first_site - first_site_ >= far) {
      finish();
      begin_at(words - colour_, first_site / 4 * 4);
    }
    const uint32_t which = nonzero_lanes(undecided);
    const int to = queued_;
    queued_ = to + __builtin_popcount(which);
    store_lanes(undecided_ + to, undecided, which);
    store_lanes(ones_ + to, n.ones, which);
    store_lanes(twos_ + to, n.twos, which);
    store_lanes(fours_ + to, n.fours, which);
    whole ? store_word(lonely_ + to, Word{}) : store_lanes(lonely_ + to, lonely, which);
    store_lanes(threshold_ + to, lane_numbers() + static_cast<uint32_t>(missing) * one_missing, which);
    store_word(word_ + to, splat(static_cast<uint32_t>(words - colour_ - first_word_)));
    store_word(site_ + to, splat(static_cast<uint32_t>(first_site - first_site_)));
    while (queued_ >= batch) decide_batch();
  }

  void finish() {
    while (queued_ > 0) decide_batch();
  }

 private:
  static constexpr int64_t far = int64_t{1} << 30;
  static constexpr uint32_t one_missing = counts * lanes;
  static constexpr int calls = 2;                     // of Philox beside each other
  static constexpr int batch = 4 * lanes;             // what was stored just now cannot be loaded at once
  static constexpr int capacity = batch + 2 * lanes;  // whole vectors are stored

  // The queue counts words and sites from here on, the sites from a multiple of 4.
  __attribute__((noinline)) void begin_at(int64_t word, int64_t site) {
    first_word_ = word;
    first_site_ = site;
    for (int i = 0; i < lanes; ++i) {
      const uint64_t counter = chains_.rest.offset[i] + static_cast<uint64_t>(site) / 4;
      counter_low_[i] = static_cast<uint32_t>(counter);
      counter_high_[i] = static_cast<uint32_t>(counter >> 32);
    }
  }

  // Decides the lowest site of each word, and keeps the words that have more.
  __attribute__((noinline)) void decide_batch() {
    const int queued = queued_ < batch ? queued_ : batch;
    int kept = 0;
    for (int first = 0; first < queued; first += calls * lanes) {
      decide(first, queued - first < calls * lanes ? queued - first : calls * lanes);
      for (int from = first; from < first + calls * lanes; from += lanes) {
        kept = keep(from, kept, nonzero_lanes(load_word(undecided_ + from)));
      }
    }
    const int behind = queued_ - queued;
    queued_ = keep(queued, kept, (1u << behind) - 1);
  }

  // Moves entries from `from` on to the end of the first `kept`.
  int keep(int from, int kept, uint32_t which) {
    for (uint32_t* entries : {undecided_, ones_, twos_, fours_, lonely_, threshold_, word_, site_}) {
      store_lanes(entries + kept, load_word(entries + from), which);
    }
    return kept + __builtin_popcount(which);
  }

  // The lowest site of each of sixteen words: its bit, its lane, its number, and where the rest of its threshold is.
  struct Sites {
    Word left, bit, lane, number, threshold;
  };

  Sites lowest(int first, int count) const {
    const Word valid = reinterpret_cast<Word>(lane_numbers() < splat(static_cast<uint32_t>(count)));
    const Word some = load_word(undecided_ + first) & valid, bit = some & -some;
    const auto digit = [&](const uint32_t* of, uint32_t weight) {
      return reinterpret_cast<Word>((load_word(of + first) & bit) != 0) & weight;
    };
    const Word base = load_word(threshold_ + first) & valid, lane = base % lanes;
    return {
        some ^ bit, bit, lane, load_word(site_ + first) + lane * sites_apart_ + place_of_bit(bit) * 2,
        base + digit(ones_, lanes) + digit(twos_, 2 * lanes) + digit(fours_, 4 * lanes) + digit(lonely_, one_missing)};
  }

  // +1 where a word of its own is below the rest of the threshold. Keeps what sites are left.
  void decide(int first, int count) {
    const int counts_of[calls] = {count < lanes ? count : lanes, count < lanes ? 0 : count - lanes};
    const Sites sites[calls] = {lowest(first, counts_of[0]), lowest(first + lanes, counts_of[1])};
    Word drawn[calls];
    draw(sites, drawn);
    for (int call = 0; call < calls; ++call) {
      const int from = first + call * lanes;
      const Sites& s = sites[call];
      const Word below = reinterpret_cast<Word>(drawn[call] < look_up(chains_.rest_of[0][0], s.threshold));
      uint32_t up[lanes], word[lanes];
      store_word(up, s.bit & below);
      store_word(word, load_word(word_ + from) + s.lane);
      uint32_t* const words = colour_ + first_word_;
      for (int i = 0; i < counts_of[call]; ++i) words[word[i]] |= up[i];
      store_word(undecided_ + from, s.left);
    }
  }

  // The word of each site's element.
  void draw(const Sites (&sites)[calls], Word (&drawn)[calls]) const {
    Word low[calls], high[calls], sample[calls], words[4 * calls];
    for (int call = 0; call < calls; ++call) {
      const Word lane = sites[call].lane, block = sites[call].number / 4;
      low[call] = __builtin_shuffle(counter_low_, lane) + block;
      const Word carry = reinterpret_cast<Word>(low[call] < block);  // -1
      high[call] = __builtin_shuffle(counter_high_, lane) - carry;
      sample[call] = __builtin_shuffle(chains_.rest.sample, lane);
    }
    if (chains_.rest.one_key) {
      lane_words<calls>(chains_.rest_keys, low, high, sample, step_, words);
    } else {
      for (int call = 0; call < calls; ++call) {
        uint64_t seed[lanes];
        for (int i = 0; i < lanes; ++i) seed[i] = chains_.rest.seed[sites[call].lane[i]];
        lane_words<1>(LaneKeys(seed), {low[call]}, {high[call]}, {sample[call]}, step_, words + 4 * call);
      }
    }
    for (int call = 0; call < calls; ++call) {
      const Word odd = reinterpret_cast<Word>((sites[call].number & 1) != 0);
      const Word upper = reinterpret_cast<Word>((sites[call].number & 2) != 0);
      const Word* w = words + 4 * call;
      const Word lower_pair = (w[0] & ~odd) | (w[1] & odd), upper_pair = (w[2] & ~odd) | (w[3] & odd);
      drawn[call] = (lower_pair & ~upper) | (upper_pair & upper);
    }
  }

  const Chains& chains_;
  uint32_t step_, sites_apart_;
  uint32_t* colour_;
  int64_t first_word_, first_site_;
  Word counter_low_, counter_high_;
  int queued_ = 0;
  // Beyond the queue they hold anything: what would clear them takes as long as a small lattice.
  uint32_t undecided_[capacity], ones_[capacity], twos_[capacity], fours_[capacity];
  uint32_t lonely_[capacity], threshold_[capacity], word_[capacity], site_[capacity];
};

}  // namespace variate::cpu::VARIATE_ISA
