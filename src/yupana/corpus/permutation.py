"""A shuffled order that is computed for the numbers asked, never stored."""

from __future__ import annotations

import hashlib

import numpy as np

from yupana.corpus.words import mix


def permuted(numbers: np.ndarray, n: int, *key: object) -> np.ndarray:
    """π(numbers), where π is the pseudo-random permutation of 0 … n-1 that `key` names; int64, any shape.

    A Feistel network permutes the 4^k ≥ n numbers; one that lands at n or above is sent through again until it
    lands below ("cycle walking"), fewer than four times on average. (Black & Rogaway, Ciphers with Arbitrary
    Finite Domains, CT-RSA 2002, §3 and §4.)
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = np.frombuffer(hashlib.blake2b(repr(key).encode(), digest_size=64).digest(), dtype="<u8")
    flat = np.asarray(numbers).astype(np.uint64).ravel()
    walking = np.arange(flat.size)
    while walking.size:
        left, right = flat[walking] >> half, flat[walking] & mask
        for round_key in keys:  # eight rounds
            left, right = right, left ^ (mix(right ^ round_key) & mask)
        flat[walking] = left << half | right
        walking = walking[flat[walking] >= n]
    return flat.astype(np.int64).reshape(np.shape(numbers))
