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
    for (int first = 0; first < queued; first += lanes) {
      const int count = queued - first < lanes ? queued - first : lanes;
      store_word(undecided_ + first, decide(first, count));
      kept = keep(first, kept, nonzero_lanes(load_word(undecided_ + first)));
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

  // +1 where a word of its own is below the rest of the threshold. Returns the sites that are left.
  Word decide(int first, int count) {
    const Word valid = reinterpret_cast<Word>(lane_numbers() < splat(static_cast<uint32_t>(count)));
    const Word some = load_word(undecided_ + first) & valid, bit = some & -some;
    const auto digit = [&](const uint32_t* of, uint32_t weight) {
      return reinterpret_cast<Word>((load_word(of + first) & bit) != 0) & weight;
    };
    const Word base = load_word(threshold_ + first) & valid, lane = base % lanes;
    const Word threshold =
        base + digit(ones_, lanes) + digit(twos_, 2 * lanes) + digit(fours_, 4 * lanes) + digit(lonely_, one_missing);
    const Word site = load_word(site_ + first) + lane * sites_apart_ + place_of_bit(bit) * 2;
    const Word below = reinterpret_cast<Word>(draw(lane, site) < look_up(chains_.rest_of[0][0], threshold));
    uint32_t up[lanes], word[lanes];
    store_word(up, bit & below);
    store_word(word, load_word(word_ + first) + lane);
    uint32_t* const words = colour_ + first_word_;
    for (int i = 0; i < count; ++i) words[word[i]] |= up[i];
    return some ^ bit;
  }

  // The word of each site's element.
  Word draw(const Word& lane, const Word& site) const {
    const Word block = site / 4, low = __builtin_shuffle(counter_low_, lane) + block;
    const Word carry = reinterpret_cast<Word>(low < block);  // -1
    const Word high = __builtin_shuffle(counter_high_, lane) - carry;
    const Word sample = __builtin_shuffle(chains_.rest.sample, lane);
    Word words[4];
    if (chains_.rest.one_key) {
      lane_words(chains_.rest_keys, low, high, sample, step_, words);
    } else {
      uint64_t seed[lanes];
      for (int i = 0; i < lanes; ++i) seed[i] = chains_.rest.seed[lane[i]];
      lane_words(LaneKeys(seed), low, high, sample, step_, words);
    }
    const Word odd = reinterpret_cast<Word>((site & 1) != 0), upper = reinterpret_cast<Word>((site & 2) != 0);
    const Word lower_pair = (words[0] & ~odd) | (words[1] & odd), upper_pair = (words[2] & ~odd) | (words[3] & odd);
    return (lower_pair & ~upper) | (upper_pair & upper);
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
