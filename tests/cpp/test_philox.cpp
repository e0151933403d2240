// The generator against published answers, and what is made of its words in integers.
#include <variate/math/random.hpp>

#include <initializer_list>

#include "check.hpp"

using namespace variate::math;

namespace {

__extension__ using Wide = unsigned __int128;

constexpr std::uint64_t wide(std::uint32_t low, std::uint32_t high) {
  return low | static_cast<std::uint64_t>(high) << 32;
}

// The known answers that Random123 publishes.
struct KnownAnswer {
  std::uint32_t counter[4], key[2], words[4];
};

constexpr KnownAnswer known_answers[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

void test_known_answers() {
  for (const KnownAnswer& known : known_answers) {
    const auto& c = known.counter;
    const std::uint64_t seed = wide(known.key[0], known.key[1]);
    const Words words = philox(seed, c[0], c[1], c[2], c[3]);
    // The same counter as (offset + block, sample, step), the sum modulo 2^64.
    const Key key = {seed, wide(c[0], c[1]) - 12345};
    const Words noise = noise_words(key, 12345, c[2], c[3]);
    for (int i = 0; i < 4; ++i) {
      CHECK(words.w[i] == known.words[i], "word %d is %08x, not %08x", i, words.w[i], known.words[i]);
      CHECK(noise.w[i] == known.words[i], "noise word %d is %08x, not %08x", i, noise.w[i], known.words[i]);
    }
  }
}

void test_fold_in() {
  // The words of counter offset + data, two to a number.
  const Key zero = fold_in({0, 0}, 0);
  CHECK(zero.seed == 0xe169c58d6627e8d5u && zero.offset == 0x9b00dbd8bc57ac4cu);
  const Key moved = fold_in({0, 5}, static_cast<std::uint64_t>(-5));
  CHECK(moved.seed == zero.seed && moved.offset == zero.offset, "data is added to the offset modulo 2^64");
  const Words next = philox(7, 1, 2, 0, 0);
  const Key carried = fold_in({7, 0xffffffff}, 0x100000002);
  CHECK(carried.seed == wide(next.w[0], next.w[1]) && carried.offset == wide(next.w[2], next.w[3]));
}

void test_uniform() {
  CHECK(uniform(0) == 0x1p-33f);
  CHECK(uniform(1) == 0x1.8p-32f);
  CHECK(uniform(0x80000000u) == 0.5f);
  CHECK(uniform(0xffffff7fu) == 0x1.fffffep-1f);
  CHECK(uniform(0xffffff80u) == 1.0f, "the first of the last 128 words");
  CHECK(uniform(0xffffffffu) == 1.0f);
  // The word is rounded to 24 bits; what follows is exact in float64 and rounded to float32.
  for (std::uint64_t word = 0; word <= 0xffffffffu; word += 4099) {
    const float expected = static_cast<float>(static_cast<double>(static_cast<float>(word)) * 0x1p-32 + 0x1p-33);
    CHECK(uniform(static_cast<std::uint32_t>(word)) == expected, "word %llx", static_cast<unsigned long long>(word));
  }
}

// A draw is 1 for exactly the words under ceil(p 2^32).
template <class T>
void check_threshold(T p, std::uint64_t threshold) {
  if (threshold > 0) CHECK(bernoulli(static_cast<std::uint32_t>(threshold - 1), p) == T(1), "p = %a", double(p));
  if (threshold < 0x100000000u) CHECK(bernoulli(static_cast<std::uint32_t>(threshold), p) == T(0), "p = %a", double(p));
}

void test_bernoulli() {
  for (std::uint64_t word : {0ull, 1ull, 2ull, 1000ull, 0x7fffffffull, 0x80000000ull, 0xfffffffeull, 0xffffffffull}) {
    const double p = static_cast<double>(word) * 0x1p-32;
    check_threshold(p, word);
    check_threshold(p + 0x1p-53, word + 1);  // the next number up: a threshold is a ceiling
    if (static_cast<double>(static_cast<float>(p)) == p) check_threshold(static_cast<float>(p), word);
  }
  for (std::uint32_t word : {0u, 1u, 0x80000000u, 0xffffffffu}) {
    for (float never : {0.0f, -0.0f, -1.0f, -__builtin_inff()}) CHECK(bernoulli(word, never) == 0.0f);
    for (float always : {1.0f, 2.0f, __builtin_inff()}) CHECK(bernoulli(word, always) == 1.0f);
    CHECK(bernoulli(word, __builtin_nanf("")) != bernoulli(word, __builtin_nanf("")), "NaN in, NaN out");
  }
  check_threshold(0x1p-149f, 1);  // the smallest number of all still has word 0
  check_threshold(0x1p-1074, 1);
  check_threshold(0x1.fffffep-1f, 0xffffff00u);
}

std::uint64_t scaled(std::uint64_t fraction, std::uint64_t range) {
  const auto word = static_cast<std::uint32_t>(fraction >> 32);
  const auto low = static_cast<std::uint32_t>(fraction);
  const Scaled s = scale_word(word, range);
  const std::uint64_t value = scale_carry(s, low, range);
  CHECK(undecided(s.fraction, range) || value == s.value, "a decided word took a carry: range %llu, fraction %llx",
        static_cast<unsigned long long>(range), static_cast<unsigned long long>(fraction));
  // Undecided: exactly the words that some low word carries.
  CHECK(undecided(s.fraction, range) == (scale_carry(s, 0xffffffffu, range) != s.value), "range %llu, fraction %llx",
        static_cast<unsigned long long>(range), static_cast<unsigned long long>(fraction));
  return value;
}

// The 64-bit fractions that give v are those of [v 2^64 / range, (v + 1) 2^64 / range): both ends of each.
void check_value(std::uint64_t range, std::uint64_t v) {
  const auto ceiling = ((static_cast<Wide>(v) << 64) + range - 1) / range;
  const auto first = static_cast<std::uint64_t>(ceiling);
  CHECK(scaled(first, range) == v, "range %llu, value %llu", static_cast<unsigned long long>(range),
        static_cast<unsigned long long>(v));
  if (v > 0) CHECK(scaled(first - 1, range) == v - 1);
  if (v == range - 1) CHECK(scaled(~std::uint64_t{0}, range) == v);
}

void test_scale_word() {
  for (std::uint64_t range = 1; range <= 1500; ++range) {
    for (std::uint64_t v = 0; v < range; ++v) check_value(range, v);
  }
  for (std::uint64_t range :
       {0x7fffffffull, 0x80000000ull, 0x80000001ull, 0xfffffffbull, 0xffffffffull, 0x100000000ull}) {
    for (std::uint64_t v = 0; v < range; v += 104729) check_value(range, v);
    check_value(range, range - 1);
  }
  // A range of 2^32 returns the word.
  for (std::uint64_t word = 0; word <= 0xffffffffu; word += 65521) CHECK(scaled(word << 32, 0x100000000u) == word);
}

}  // namespace

int main() {
  test_known_answers();
  test_fold_in();
  test_uniform();
  test_bernoulli();
  test_scale_word();
  return check::finish();
}
