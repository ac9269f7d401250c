"""CRC-32 of blocks that are finished in any order: zlib has the combination in C, but not in Python."""

from __future__ import annotations

import functools

_POLYNOMIAL = 0xEDB88320  # bits reversed: the highest bit is x^0


def _multiply(a: int, b: int) -> int:
    """The product of two polynomials modulo CRC-32's."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product


@functools.lru_cache(maxsize=256)
def _shift(length: int) -> int:
    """x to the power 8 * length: what ``length`` bytes behind a message multiply its CRC by."""
    power, base = 1 << 31, 1 << 23  # x^0 and x^8
    while length:
        if length & 1:
            power = _multiply(base, power)
        base = _multiply(base, base)
        length >>= 1
    return power


def combine(first: int, second: int, second_length: int) -> int:
    """The CRC of two blocks after each other from the CRC of each."""
    return _multiply(_shift(second_length), first) ^ second
