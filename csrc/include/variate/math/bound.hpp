// Importance weights in logarithms, one element at a time.
#pragma once

#include "elementary.hpp"

namespace variate::math {

template <class T>
VARIATE_INLINE constexpr T infinity() {
  return static_cast<T>(INFINITY);
}

// exp(x - highest), where no x of the column is above `highest`: 1 at the highest, also where it is infinite, and 0 for
// a weight of 0, also where all are.
template <class T>
VARIATE_INLINE T relative_weight(T x, T highest) {
  const T e = exp_nonpositive(x - (highest == -infinity<T>() ? T(0) : highest));
  return x == highest && highest != -infinity<T>() ? T(1) : e;
}

// log(sum) + shift, where sum is 0 or at least 1 or NaN.
template <class T>
VARIATE_INLINE T shifted_log(T sum, T shift) {
  return sum > T(0) ? shift + log(sum > T(0) ? sum : T(1)) : (sum == T(0) ? -infinity<T>() : sum);
}

// What is known of a column of log weights before each of them is left out in turn.
template <class T>
struct Column {
  T highest;     // the largest log weight
  T second;      // the largest of the others: highest, if two share it
  double total;  // sum of exp(x - highest)
  double rest;   // sum of exp(x - second) over the others of the highest
  double sum;    // of the log weights that are not -infinity
  T zeros;       // how many are
};

// bound - bound with x replaced by the mean of the others: the logarithm of a quotient of two sums. Without x, the sum
// over the others is taken as it is where x is the highest, since total - 1 would cancel.
template <class T>
VARIATE_INLINE T learning_signal(T x, const Column<T>& c, T others) {
  const bool zero = x == -infinity<T>();
  const bool top = x == c.highest;
  const double mean = (zero ? c.sum : c.sum - static_cast<double>(x)) / static_cast<double>(others);
  const T baseline = c.zeros > (zero ? T(1) : T(0)) ? -infinity<T>() : static_cast<T>(mean);
  const T scale = top ? c.second : c.highest;
  const double without = top ? c.rest : c.total - static_cast<double>(relative_weight(x, c.highest));
  const T sum = static_cast<T>(without + static_cast<double>(relative_weight(baseline, scale)));
  const T total = static_cast<T>(c.total);
  const T signal = (c.highest - scale) + (log(total > T(0) ? total : T(1)) - log(sum > T(0) ? sum : T(1)));
  const T certain = total == T(0) ? T(0) : (sum == T(0) ? infinity<T>() : signal);
  return total == total && sum == sum ? certain : total + sum;
}

}  // namespace variate::math
