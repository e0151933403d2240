#include "kernels.h"
#include "noise.h"

namespace variate::cpu::VARIATE_ISA {

namespace {

// out = draw(words, out, count) tile by tile.
template <class T, class Draw>
void fill(const variate_random_args& a, Draw draw) {
  const Grid grid(a.rows, a.cols);
  for_tiles(grid, a.execution.threads, [&](const Tile& t) {
    WordBuffer words;
    Buffer<T> buffer;
    T* out = target(a.out, t, buffer);
    draw(tile_words(a.noise, t, words), out, t.count);
    store(a.out, t, out);
  });
}

template <class T, class Function>
inline void map_words(const uint32_t* __restrict words, T* __restrict out, int64_t count, Function function) {
  for (int64_t i = 0; i < count; ++i) out[i] = function(words[i]);
}

template <class T>
void bernoulli_tiles(const variate_bernoulli_args& a) {
  const Grid grid(a.rows, a.cols);
  for_tiles(grid, a.execution.threads, [&](const Tile& t) {
    WordBuffer word_buffer;
    Buffer<T> probs_buffer, out_buffer;
    const uint32_t* __restrict words = tile_words(a.noise, t, word_buffer);
    const T* __restrict probs = load(a.probs, t, probs_buffer);
    T* __restrict out = target(a.out, t, out_buffer);
    for (int64_t i = 0; i < t.count; ++i) out[i] = math::bernoulli(words[i], probs[i]);
    store(a.out, t, out);
  });
}

template <class T>
void categorical_rows(const variate_categorical_args& a) {
  // Tiles of one row cut its categories into pieces; a running best joins them.
  const int64_t draws = a.rows * a.groups;
  const bool parallel = a.execution.threads > 1 && draws * a.categories >= parallel_grain;
  const auto draw = [&](int64_t index) {
    const int64_t row = index / a.groups;
    const int64_t begin = index % a.groups * a.categories;
    const int64_t end = begin + a.categories;
    T best = -static_cast<T>(__builtin_inff());
    int64_t winner = 0;
    for (int64_t piece = begin / 4 * 4; piece < end; piece += tile_elements) {
      Tile t;
      t.row = row;
      t.rows = 1;
      t.col = piece;
      t.cols = end - piece < tile_elements ? end - piece : tile_elements;
      t.pitch = (t.cols + 3) / 4 * 4;
      t.count = (t.pitch + lane_multiple - 1) / lane_multiple * lane_multiple;
      WordBuffer word_buffer;
      Buffer<T> logits_buffer, score_buffer;
      const uint32_t* __restrict words = tile_words(a.noise, t, word_buffer);
      const T* __restrict logits = load(a.logits, t, logits_buffer);
      T* __restrict scores = score_buffer.data;
      for (int64_t i = 0; i < t.count; ++i) scores[i] = logits[i] + static_cast<T>(math::gumbel(words[i]));
      for (int64_t i = piece < begin ? begin - piece : 0; i < t.cols; ++i) {
        // The first of equals wins; so does the first NaN, over everything.
        if (scores[i] > best || (scores[i] != scores[i] && best == best)) {
          best = scores[i];
          winner = piece + i - begin;
        }
      }
    }
    static_cast<int64_t*>(a.out.data)[row * a.out.row_stride + index % a.groups * a.out.col_stride] = winner;
  };
  if (!parallel) {
    for (int64_t i = 0; i < draws; ++i) draw(i);
    return;
  }
#pragma omp parallel for schedule(static) num_threads(a.execution.threads)
  for (int64_t i = 0; i < draws; ++i) draw(i);
}

}  // namespace

void bits(const variate_random_args& a) {
  fill<int64_t>(a, [](const uint32_t* words, int64_t* out, int64_t count) {
    map_words(words, out, count, [](uint32_t word) { return static_cast<int64_t>(word); });
  });
}

void uniform(const variate_random_args& a) {
  fill<float>(a, [](const uint32_t* words, float* out, int64_t count) {
    map_words(words, out, count, [](uint32_t word) { return math::uniform(word); });
  });
}

void normal(const variate_random_args& a) { fill<float>(a, normals_of); }

void exponential(const variate_random_args& a) {
  fill<float>(a, [](const uint32_t* words, float* out, int64_t count) {
    map_words(words, out, count, [](uint32_t word) { return math::exponential_draw(word); });
  });
}

void gumbel(const variate_random_args& a) {
  fill<float>(a, [](const uint32_t* words, float* out, int64_t count) {
    map_words(words, out, count, [](uint32_t word) { return math::gumbel(word); });
  });
}

void bernoulli(const variate_bernoulli_args& a) {
  a.probs.dtype == VARIATE_FLOAT64 ? bernoulli_tiles<double>(a) : bernoulli_tiles<float>(a);
}

void randint(const variate_randint_args& a) {
  const Grid grid(a.rows, a.cols);
  const uint64_t range = static_cast<uint64_t>(a.high) - static_cast<uint64_t>(a.low);
  const uint64_t low = static_cast<uint64_t>(a.low);
  for_tiles(grid, a.execution.threads, [&](const Tile& t) {
    WordBuffer word_buffer, spare_buffer;
    Buffer<int64_t> buffer;
    const uint32_t* __restrict words = tile_words(a.noise, t, word_buffer);
    int64_t* __restrict out = target(a.out, t, buffer);
    uint32_t largest = 0;  // one maximum a tile tells whether any element is undecided
    for (int64_t i = 0; i < t.count; ++i) {
      const math::Scaled scaled = math::scale_word(words[i], range);
      largest = scaled.fraction > largest ? scaled.fraction : largest;
      out[i] = static_cast<int64_t>(low + scaled.value);
    }
    if (math::undecided(largest, range)) {
      const uint32_t* __restrict spare = tile_words(a.noise, t, spare_buffer, 1);
      for (int64_t i = 0; i < t.count; ++i) {
        out[i] = static_cast<int64_t>(low + math::scale_carry(math::scale_word(words[i], range), spare[i], range));
      }
    }
    store(a.out, t, out);
  });
}

void categorical(const variate_categorical_args& a) {
  a.logits.dtype == VARIATE_FLOAT64 ? categorical_rows<double>(a) : categorical_rows<float>(a);
}

void fold_in(const variate_fold_in_args& a) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const auto* key = static_cast<const int64_t*>(a.keys.data) + r * a.keys.row_stride;
    const auto* data = static_cast<const int64_t*>(a.data.data) + r * a.data.row_stride;
    const math::Key folded = math::fold_in(
        {static_cast<uint64_t>(key[0]), static_cast<uint64_t>(key[a.keys.col_stride])}, static_cast<uint64_t>(*data));
    auto* out = static_cast<int64_t*>(a.out.data) + r * a.out.row_stride;
    out[0] = static_cast<int64_t>(folded.seed);
    out[a.out.col_stride] = static_cast<int64_t>(folded.offset);
  }
}

}  // namespace variate::cpu::VARIATE_ISA
