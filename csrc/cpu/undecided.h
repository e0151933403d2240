// Sites that the digits of the planes leave undecided, 1 in 256: sixteen at a time.
#pragma once

#include <initializer_list>

#include "chains.h"

namespace variate::cpu::VARIATE_ISA {

// A queue of words that have such sites: their neighbours' counts, where they lie and whose thresholds are theirs.
class Undecided {
 public:
  Undecided(const Chains& chains, int colour, uint32_t step)
      : chains_(chains),
        step_(step),
        sites_apart_(chains.layout.chains_in_lanes() ? 0 : 64),
        colour_(chains.colour[colour]) {}

  // Those of a vector of words from `words` on, whose lane 0 begins with site `first_site`, and where `missing`
  template <bool whole>
  void add(uint32_t* words, int64_t first_site, int missing, const Word& lonely, const math::BitCount<Word>& n,
           const Word& undecided) {
    const int64_t word = words - colour_ - first_word_, site = first_site - first_site_;
    if (word >= far || site >= far) return add_far<whole>(words, first_site, missing, lonely, n, undecided);
    const uint32_t which = nonzero_lanes(undecided);
    store_lanes(undecided_ + queued_, undecided, which);
    store_lanes(ones_ + queued_, n.ones, which);
    store_lanes(twos_ + queued_, n.twos, which);
    store_lanes(fours_ + queued_, n.fours, which);
    if constexpr (!whole) store_lanes(lonely_ + queued_, lonely, which);
    store_lanes(threshold_ + queued_, lane_numbers() + static_cast<uint32_t>(missing) * one_missing, which);
    store_word(word_ + queued_, splat(static_cast<uint32_t>(word)));
    store_word(site_ + queued_, splat(static_cast<uint32_t>(site)));
    queued_ += __builtin_popcount(which);
    while (queued_ >= lanes) decide(lanes);
  }

  void finish() {
    while (queued_ > 0) decide(queued_ < lanes ? queued_ : lanes);
  }

 private:
  static constexpr int64_t far = int64_t{1} << 30;
  static constexpr uint32_t one_missing = counts * lanes;
  static constexpr int capacity = 3 * lanes;  // a vector more than can wait, as whole ones are stored

  // From here on the words and sites of the queue are counted anew, the sites from a multiple of 4 on.
  template <bool whole>
  __attribute__((noinline)) void add_far(uint32_t* words, int64_t first_site, int missing, const Word& lonely,
                                         const math::BitCount<Word>& n, const Word& undecided) {
    finish();
    first_word_ = words - colour_;
    first_site_ = first_site / 4 * 4;
    add<whole>(words, first_site, missing, lonely, n, undecided);
  }

  // The lowest site of each of the first `count` words: +1 where a word of its own is below the rest of the threshold.
  __attribute__((noinline)) void decide(int count) {
    const Word valid = reinterpret_cast<Word>(lane_numbers() < splat(static_cast<uint32_t>(count)));
    const Word some = load_word(undecided_) & valid, bit = some & -some;
    const auto digit = [&](const uint32_t* of, uint32_t weight) {
      return reinterpret_cast<Word>((load_word(of) & bit) != 0) & weight;
    };
    const Word lane = load_word(threshold_) % lanes;
    const Word threshold = load_word(threshold_) + digit(ones_, lanes) + digit(twos_, 2 * lanes) +
                           digit(fours_, 4 * lanes) + digit(lonely_, one_missing);
    const Word site = load_word(site_) + lane * sites_apart_ + place_of_bit(bit) * 2;
    const Word words = draw(lane, site);
    const uint32_t* rest = chains_.rest_of[0][0];
    for (int i = 0; i < count; ++i) {
      uint32_t& word = colour_[first_word_ + word_[i] + lane[i]];
      word |= words[i] < rest[threshold[i]] ? bit[i] : 0;
    }
    drop(count, some ^ bit);
  }

  // The word of each site's element.
  Word draw(const Word& lane, const Word& site) const {
    const LaneStreams& streams = chains_.rest;
    Word low, high, words[4];
    for (int i = 0; i < lanes; ++i) {
      const uint64_t counter = streams.offset[lane[i]] + static_cast<uint64_t>(first_site_ + site[i]) / 4;
      low[i] = static_cast<uint32_t>(counter);
      high[i] = static_cast<uint32_t>(counter >> 32);
    }
    const Word sample = __builtin_shuffle(streams.sample, lane);
    if (streams.one_key) {
      lane_words(chains_.rest_keys, low, high, sample, step_, words);
    } else {
      uint64_t seed[lanes];
      for (int i = 0; i < lanes; ++i) seed[i] = streams.seed[lane[i]];
      lane_words(LaneKeys(seed), low, high, sample, step_, words);
    }
    const Word odd = reinterpret_cast<Word>((site & 1) != 0), upper = reinterpret_cast<Word>((site & 2) != 0);
    const Word lower_pair = (words[0] & ~odd) | (words[1] & odd), upper_pair = (words[2] & ~odd) | (words[3] & odd);
    return (lower_pair & ~upper) | (upper_pair & upper);
  }

  // Takes the first `count` words out of the queue, but for those with sites `left`, which go to its end.
  void drop(int count, const Word& left) {
    const uint32_t which = nonzero_lanes(left);
    store_word(undecided_, left);
    const int waiting = queued_ - count;
    for (uint32_t* entries : {undecided_, ones_, twos_, fours_, lonely_, threshold_, word_, site_}) {
      const Word first = load_word(entries);
      store_word(entries, load_word(entries + count));
      store_lanes(entries + waiting, first, which);
    }
    queued_ = waiting + __builtin_popcount(which);
  }

  const Chains& chains_;
  uint32_t step_, sites_apart_;
  uint32_t* colour_;
  int64_t first_word_ = 0, first_site_ = 0;
  int queued_ = 0;
  uint32_t undecided_[capacity] = {}, ones_[capacity] = {}, twos_[capacity] = {}, fours_[capacity] = {};
  uint32_t lonely_[capacity] = {}, threshold_[capacity] = {}, word_[capacity] = {}, site_[capacity] = {};
};

}  // namespace variate::cpu::VARIATE_ISA
