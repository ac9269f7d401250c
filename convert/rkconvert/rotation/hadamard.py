"""Random orthogonal matrices that spread evenly what is large in a few places: Hadamard matrices with random signs.

A Hadamard matrix has entries 1 and -1, and orthogonal rows. Sylvester makes one of 2 n from one of n; Paley has one of
q + 1 for each prime q = 3 mod 4, and of 2 (q + 1) for each q = 1 mod 4. Where these do not reach, as for odd sizes, a
random orthogonal matrix stands for the part of the size that is left.
"""

from __future__ import annotations

from functools import reduce

import numpy as np

from rk3588.errors import UsageError

from .orthogonal import Matrix, Orthogonal

_SYLVESTER = np.array([[1.0, 1.0], [1.0, -1.0]])
_MOST_DOUBLINGS = 6  # in one factor: factors of 64 are quick to multiply with
_MOST_DENSE = 4096  # of the rest: it is kept as a matrix


def random_hadamard(size: int, seed: tuple[int, ...]) -> Orthogonal:
    """Of ``size``, the same for the same ``seed``. From the generator's raw bits, which NumPy keeps stable.

    UsageError for a size that has an obstacle.
    """
    if reason := obstacle(size):
        raise UsageError(f"--rotate: {reason}")
    random = np.random.PCG64(seed)
    doublings, rest = _parts(size)
    factors = []
    while doublings:
        count = min(doublings, _MOST_DOUBLINGS)
        factors.append(reduce(np.kron, [_SYLVESTER] * count) / np.sqrt(2**count))
        doublings -= count
    if rest > 1 or not factors:
        paley = _paley(rest)
        factors.append(_random_orthogonal(rest, random) if paley is None else paley / np.sqrt(rest))
    signs = 1.0 - 2.0 * (random.random_raw(size) >> np.uint64(63)).astype(np.float64)
    return Orthogonal(tuple(factors), signs)


def obstacle(size: int) -> str | None:
    """Why there is no matrix of ``size``: it would not fit into memory, for a size that no known model has."""
    rest = _parts(size)[1]
    return f"a matrix of {size} would need one of {rest} in it, more than {_MOST_DENSE}" if rest > _MOST_DENSE else None


def _parts(size: int) -> tuple[int, int]:
    """How often to double a matrix of which size: the smallest of Paley's, or what is odd of ``size``."""
    most = (size & -size).bit_length() - 1
    fitting = (d for d in range(most, -1, -1) if _first_kind(size >> d) or _second_kind(size >> d))
    doublings = most if size == 1 << most else next(fitting, most)
    return doublings, size >> doublings


def _first_kind(size: int) -> bool:
    return size % 4 == 0 and _is_prime(size - 1)  # which then is 3 mod 4


def _second_kind(size: int) -> bool:
    return size % 8 == 4 and _is_prime(size // 2 - 1)  # which then is 1 mod 4


def _paley(size: int) -> Matrix | None:
    if _first_kind(size):
        return _bordered(size - 1, -1.0) + np.eye(size)
    if _second_kind(size):
        half = size // 2
        symmetric = _bordered(half - 1, 1.0)
        return np.asarray(np.kron(symmetric, _SYLVESTER) + np.kron(np.eye(half), [[1.0, -1.0], [-1.0, -1.0]]))
    return None


def _bordered(prime: int, corner: float) -> Matrix:
    """Paley's conference matrix: which differences are squares modulo ``prime``, with a border of ones."""
    squares = np.unique(np.arange(1, prime) ** 2 % prime)
    character = np.full(prime, -1.0)
    character[squares], character[0] = 1.0, 0.0
    found = np.zeros((prime + 1, prime + 1))
    found[0, 1:], found[1:, 0] = 1.0, corner
    at = np.arange(prime)
    found[1:, 1:] = character[(at[:, None] - at) % prime]
    return found


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def _random_orthogonal(size: int, random: np.random.PCG64) -> Matrix:
    """Evenly distributed over all of that size: what QR makes of normal numbers, with R's diagonal above zero."""
    bits = random.random_raw(2 * size * size)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / 2**53
    normal = np.sqrt(-2 * np.log(uniform[::2])) * np.cos(2 * np.pi * uniform[1::2])
    q, r = np.linalg.qr(normal.reshape(size, size))
    return np.asarray(q * np.sign(np.diagonal(r)), np.float64)
