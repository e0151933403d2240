"""exp, log, log1p, sin, cos, sigmoid and softplus: the float32 bits of variate/math/elementary.hpp.

Explicit fma, correctly rounded division and square root only; every launch says enable_fp_fusion=False.
float64 goes to the CUDA math library. Names and bounds are the header's.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.constexpr_function
def hex_float(literal):
    """A C hexadecimal float."""
    return float.fromhex(literal)


@triton.jit
def bits_of(x):
    return x.to(tl.uint32, bitcast=True)


@triton.jit
def float_of(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def clamp(x, low, high):
    """`low` and `high` bound x; a NaN passes through."""
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@triton.jit
def round_to_integer(x):
    """The nearest integer of |x| < 2^22, ties to even: as a float, and its low bits as a uint32."""
    shifted = x + 12582912.0  # 1.5 * 2^23: adding it leaves the integer part in the low mantissa bits
    return shifted - 12582912.0, bits_of(shifted) - 0x4B400000


@triton.jit
def divide(a, b):
    """a / b, rounded once."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def power_of_two(n):
    """2^n for an int32 -126 <= n <= 127, 0 for n = -127."""
    return float_of((n + 127).to(tl.uint32, bitcast=True) << 23)


@triton.jit
def reduce_exponential(x):
    """n and exp(r) - 1 of x = n ln 2 + r, |r| <= ln 2 / 2."""
    n, integer = round_to_integer(x * hex_float("0x1.715476p+0"))
    r = tl.fma(n, hex_float("-0x1.7f7d1cp-20"), tl.fma(n, hex_float("-0x1.62e4p-1"), x))
    q = tl.fma(r, hex_float("0x1.6d722cp-10"), hex_float("0x1.122680p-7"))
    q = tl.fma(q, r, hex_float("0x1.5554c8p-5"))
    q = tl.fma(q, r, hex_float("0x1.5554b2p-3"))
    q = tl.fma(q, r, 0.5)
    return integer.to(tl.int32, bitcast=True), tl.fma(r * r, q, r)


@triton.jit
def exponential(x):
    """exp(x), and exp(x) - 1 without cancellation."""
    if x.dtype == tl.float64:
        e = tl.exp(x)
        # Kahan's correction: (e - 1) x / log(e) cancels the rounding of e.
        inner = (e != 1.0) & (e > 0.25) & (e < 4.0)
        corrected = (e - 1.0) * x / tl.log(tl.where(inner, e, 2.0))
        return e, tl.where(inner, corrected, tl.where(e == 1.0, x, e - 1.0))
    else:
        exponent, p = reduce_exponential(clamp(x, -104.0, 89.0))  # exp is 0 below and infinite above
        # Half of 2^n, so that n = 128 stays in range; results below 2^-125 are 0.
        half = power_of_two(tl.where(exponent > -126, exponent - 1, -127))
        exp = tl.fma(p, half, half)
        expm1 = tl.fma(p, half, half - 0.5)
        return exp + exp, expm1 + expm1


@triton.jit
def exp(x):
    return exponential(x)[0]


@triton.jit
def exp_nonpositive(x):
    """exp(x) of x <= 0: results below 2^-126 are 0."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        exponent, p = reduce_exponential(tl.where(x < -88.0, -88.0, x))  # exponent >= -127, whose scale is 0
        scale = power_of_two(exponent)
        return tl.fma(p, scale, scale)


@triton.jit
def log_reduced(exponent, f):
    """exponent * ln 2 + log(1 + f) for f in [sqrt(1/2) - 1, sqrt(2) - 1]."""
    p = tl.fma(f, hex_float("-0x1.41fe3ap-4"), hex_float("0x1.07d6a8p-3"))
    p = tl.fma(p, f, hex_float("-0x1.0cdf74p-3"))
    p = tl.fma(p, f, hex_float("0x1.226d1ap-3"))
    p = tl.fma(p, f, hex_float("-0x1.54788ep-3"))
    p = tl.fma(p, f, hex_float("0x1.99a5aap-3"))
    p = tl.fma(p, f, hex_float("-0x1.000222p-2"))
    p = tl.fma(p, f, hex_float("0x1.55554ap-2"))
    square = f * f
    tail = tl.fma(exponent, hex_float("0x1.7f7d1cp-20"), square * f * p)
    tail = tl.fma(square, -0.5, tail)
    return tl.fma(exponent, hex_float("0x1.62e4p-1"), f + tail)


@triton.jit
def log_split(x):
    """Exponent and fraction f of a positive normal x = 2^exponent (1 + f), as log_reduced takes them."""
    bits = bits_of(x)
    exponent = (bits - 0x3F3504F3).to(tl.int32, bitcast=True) >> 23  # sqrt(1/2)
    mantissa = float_of(bits - (exponent.to(tl.uint32, bitcast=True) << 23))
    return exponent.to(tl.float32), mantissa - 1.0


@triton.jit
def log_split_complement(x):
    """The same of 1 - x for x in [0, 1/2], without rounding it."""
    reduce = x > hex_float("0x1.2bec34p-2")  # 1 - x < sqrt(1/2): double it
    return tl.where(reduce, -1.0, 0.0), tl.where(reduce, tl.fma(x, -2.0, 1.0), -x)


@triton.jit
def log(x):
    """log(x) of a positive normal float32 x."""
    exponent, f = log_split(x)
    return log_reduced(exponent, f)


@triton.jit
def sincos_2pi(u):
    """sin(2 pi u) and cos(2 pi u) of u in [0, 1]."""
    quarter, integer = round_to_integer(4.0 * u)
    r = tl.fma(quarter, -0.25, u)  # exact, in [-1/8, 1/8]
    s = r * r
    a = tl.fma(s, hex_float("-0x1.32e77cp+6"), hex_float("0x1.467faap+6"))
    a = tl.fma(a, s, hex_float("-0x1.4abc22p+5"))
    a = tl.fma(a, s, hex_float("0x1.921fb6p+2"))
    a = a * r
    b = tl.fma(s, hex_float("0x1.d47088p+5"), hex_float("-0x1.55b138p+6"))
    b = tl.fma(b, s, hex_float("0x1.03c1aep+6"))
    b = tl.fma(b, s, hex_float("-0x1.3bd3ccp+4"))
    b = tl.fma(b, s, 1.0)
    odd = (integer & 1) != 0
    sin_sign = (integer & 2) << 30
    cos_sign = ((integer + 1) & 2) << 30
    sin = float_of(bits_of(tl.where(odd, b, a)) ^ sin_sign)
    cos = float_of(bits_of(tl.where(odd, a, b)) ^ cos_sign)
    return sin, cos


@triton.jit
def log1p_unit(x):
    """log(1 + x) of x in [0, 1], by one polynomial without a case."""
    p = tl.fma(x, hex_float("-0x1.b1650ep-9"), hex_float("0x1.4a24a0p-6"))
    p = tl.fma(p, x, hex_float("-0x1.d78b46p-5"))
    p = tl.fma(p, x, hex_float("0x1.b50b32p-4"))
    p = tl.fma(p, x, hex_float("-0x1.3a597ap-3"))
    p = tl.fma(p, x, hex_float("0x1.93510cp-3"))
    p = tl.fma(p, x, hex_float("-0x1.ff249ep-3"))
    p = tl.fma(p, x, hex_float("0x1.554dd4p-2"))
    p = tl.fma(p, x, hex_float("-0x1.ffffd2p-2"))
    return tl.fma(p, x, 1.0) * x


@triton.jit
def softplus_tail(x):
    """log(1 + exp(-|x|)): what softplus(x) = max(x, 0) + this adds to its asymptote."""
    e = exp_nonpositive(-tl.abs(x))
    if x.dtype == tl.float64:
        # Kahan's correction: log(u) e / (u - 1) cancels the rounding of u = 1 + e.
        u = 1.0 + e
        return tl.where(u == 1.0, e, tl.log(u) * e / tl.where(u == 1.0, 1.0, u - 1.0))
    else:
        return log1p_unit(e)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    e = exp_nonpositive(-tl.abs(x))
    return divide(tl.where(x < 0.0, e, 1.0), 1.0 + e)
