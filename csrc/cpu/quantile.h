// Quantiles of numbers that are not negative: by counting how many lie below a few pivots, since a count runs at the
// speed of the cache, until hardly any are left in doubt. Compared as integers, whose order is that of the numbers,
// with NaN above all.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

namespace variate::cpu::VARIATE_ISA {

template <class T>
class Quantile {
 public:
  Quantile(const T* x, int64_t count) : x_(reinterpret_cast<const Bits*>(x)), count_(count) {}

  // Between order statistics by linear interpolation, 0 <= q <= 1; NaN where an x is. `count` is at least 1.
  T operator()(double q) {
    constexpr Bits infinity = __builtin_bit_cast(Bits, std::numeric_limits<T>::infinity());
    Bits greatest = 0;
    for (int64_t i = 0; i < count_; ++i) greatest = x_[i] > greatest ? x_[i] : greatest;
    if (greatest > infinity) return std::numeric_limits<T>::quiet_NaN();
    const double at = q * static_cast<double>(count_ - 1);
    const int64_t rank = static_cast<int64_t>(at);
    const T weight = static_cast<T>(at - static_cast<double>(rank));
    narrow_to(rank, greatest + 1);
    Bits found[2];
    select(rank, found);
    const T low = __builtin_bit_cast(T, found[0]), high = __builtin_bit_cast(T, found[1]);
    if (weight == T(0) || low == high) return low;  // infinite ones too
    return low + weight * (high - low);
  }

 private:
  using Bits = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef Bits Aliased __attribute__((may_alias));
  static constexpr int64_t few = 32;

  // Leaves in [low_, high_), of which below_low_ and below_high_ are below each end, the statistic of this rank and few
  // others, or copies of it alone.
  void narrow_to(int64_t rank, Bits end) {
    low_ = 0;
    high_ = end;
    below_low_ = 0;
    below_high_ = count_;
    while (below_high_ - below_low_ > few && high_ - low_ > 1) {
      const Bits quarter = (high_ - low_ - 1) / 4 + 1;
      const Bits pivots[3] = {low_ + quarter, high_ - low_ > 2 * quarter ? low_ + 2 * quarter : high_,
                              high_ - low_ > 3 * quarter ? low_ + 3 * quarter : high_};
      int64_t below[3] = {0, 0, 0};
      count_below(pivots, below);
      for (int k = 2; k >= 0; --k) {
        if (rank >= below[k]) {
          low_ = pivots[k];
          below_low_ = below[k];
          break;
        }
        high_ = pivots[k];
        below_high_ = below[k];
      }
    }
  }

  void count_below(const Bits (&pivots)[3], int64_t (&below)[3]) const {
    constexpr int64_t block = int64_t{1} << 30;  // a lane's count fits its integer
    for (int64_t start = 0; start < count_; start += block) {
      const int64_t n = count_ - start < block ? count_ - start : block;
      const Aliased* __restrict x = x_ + start;
      const Bits p0 = pivots[0], p1 = pivots[1], p2 = pivots[2];
      Bits c0 = 0, c1 = 0, c2 = 0;
      for (int64_t i = 0; i < n; ++i) {
        c0 += x[i] < p0;
        c1 += x[i] < p1;
        c2 += x[i] < p2;
      }
      below[0] += c0;
      below[1] += c1;
      below[2] += c2;
    }
  }

  // The statistics of rank and rank + 1, the last one twice at the end.
  void select(int64_t rank, Bits (&found)[2]) const {
    if (below_high_ - below_low_ > few) {  // all the same
      found[0] = low_;
    } else {
      Bits inside[few];
      int64_t n = 0;
      for (int64_t i = 0; i < count_ && n < below_high_ - below_low_; ++i) {
        if (x_[i] < low_ || x_[i] >= high_) continue;
        int64_t k = n++;
        for (; k > 0 && inside[k - 1] > x_[i]; --k) inside[k] = inside[k - 1];
        inside[k] = x_[i];
      }
      found[0] = inside[rank - below_low_];
      if (rank + 1 < below_high_) found[1] = inside[rank + 1 - below_low_];
    }
    if (rank + 1 < below_high_) {
      if (below_high_ - below_low_ > few) found[1] = low_;
      return;
    }
    Bits next = std::numeric_limits<Bits>::max();
    for (int64_t i = 0; i < count_; ++i) {
      const Bits candidate = x_[i] >= high_ ? x_[i] : std::numeric_limits<Bits>::max();
      next = candidate < next ? candidate : next;
    }
    found[1] = rank + 1 < count_ ? next : found[0];
  }

  const Aliased* x_;
  int64_t count_;
  Bits low_ = 0, high_ = 0;
  int64_t below_low_ = 0, below_high_ = 0;
};

}  // namespace variate::cpu::VARIATE_ISA
