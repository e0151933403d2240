"""Writes noise_v1.json: what noise version 1 is, by Python's integers and numpy's float64.

It shares nothing with the library: the definition is in docs/determinism.md, Philox is that of Salmon et al. 2011.
Run it only for a new noise version, which is a major release: python tests/vectors/make_noise_v1.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

KEYS = [(0, 0), (1, 0), (42, 7), (0x0123456789ABCDEF, 2**32 - 2), (2**64 - 1, 2**64 - 3), (2**63, 2**63)]
COUNT = 11  # not a multiple of 4
SAMPLES = [0, 1, 2**32 - 1]
PROBABILITIES = [0.0, 2.0**-32, 0.01, 0.25, 0.5, 0.5 + 2.0**-30, 0.75, 0.99, 1 - 2.0**-32, 1.0]
RANGES = [(0, 1), (0, 2), (-3, 4), (10, 1010), (0, 3 * 2**30), (-(2**31), 2**31), (2**62, 2**62 + 2**32 - 1)]
LOGITS = [0.3, -1.0, 2.0, 0.0, 1.1, -0.4]


def philox(key: int, counter: tuple[int, int, int, int]) -> list[int]:
    mask = 2**32 - 1
    c = list(counter)
    k0, k1 = key & mask, key >> 32
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(q >> 32) ^ c[1] ^ k0, q & mask, (p >> 32) ^ c[3] ^ k1, p & mask]
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c


def words(key: tuple[int, int], sample: int, count: int) -> list[int]:
    seed, offset = key
    found = []
    for block in range((count + 3) // 4):
        counter = (offset + block) % 2**64
        found += philox(seed, (counter % 2**32, counter >> 32, sample, 0))
    return found[:count]


def fold_in(key: tuple[int, int], data: int) -> tuple[int, int]:
    w = words((key[0], (key[1] + data) % 2**64), 0, 4)
    return w[0] + (w[1] << 32), w[2] + (w[3] << 32)


def uniform(word: int) -> float:
    """One rounding of the word, one of the sum: both to float32."""
    return float(np.float32(float(np.float32(word)) * 2.0**-32 + 2.0**-33))


def exponential(word: int) -> float:
    if word < 2**31:
        return -math.log(uniform(word))
    return -math.log1p(-uniform(2**32 - 1 - word))


def normals(w: list[int]) -> list[float]:
    found: list[float] = []
    for a, b in zip(w[0::2], w[1::2], strict=True):
        radius, angle = math.sqrt(-2 * math.log(uniform(a))), 2 * math.pi * uniform(b)
        found += [radius * math.cos(angle), radius * math.sin(angle)]
    return found


def stream(key: tuple[int, int], sample: int) -> dict[str, object]:
    whole = words(key, sample, COUNT + 1)
    w, more = whole[:COUNT], words(fold_in(key, 1), sample, COUNT)
    scores = np.array(LOGITS) + [-math.log(exponential(word)) for word in w[: len(LOGITS)]]
    return {
        "key": key,
        "sample": sample,
        "bits": w,
        "uniform": [uniform(word) for word in w],
        "normal": normals(whole)[:COUNT],
        "exponential": [exponential(word) for word in w],
        "gumbel": [-math.log(exponential(word)) for word in w],
        "bernoulli": [int(word < math.ceil(p * 2**32)) for word, p in zip(w, PROBABILITIES, strict=False)],
        "randint": [
            [low + (((a << 32) + b) * (high - low) >> 64) for a, b in zip(w, more, strict=True)] for low, high in RANGES
        ],
        "categorical": int(scores.argmax()),
        # The gap to the runner-up, which float32 rounding must not close.
        "categorical_margin": float(np.sort(scores)[-1] - np.sort(scores)[-2]),
    }


def main() -> None:
    data = [0, 1, 2, 1000, 2**32, 2**63 - 1, -1]
    vectors = {
        "noise_version": 1,
        "probabilities": PROBABILITIES,
        "ranges": RANGES,
        "logits": LOGITS,
        "streams": [stream(key, sample) for key in KEYS for sample in SAMPLES],
        "fold_in": [[key, number, fold_in(key, number % 2**64)] for key in KEYS for number in data],
        "split": [[key, [fold_in(key, i) for i in range(5)]] for key in KEYS],
    }
    path = Path(__file__).with_name("noise_v1.json")
    path.write_text(json.dumps(vectors, separators=(",", ":")).replace('{"key"', '\n{"key"') + "\n")


if __name__ == "__main__":
    main()
