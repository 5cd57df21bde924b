"""How evenly CRC-32 spreads keys over partitions, and what it costs beside other hashes.

`python -m bench.partitioner`. For: ADR 4, which says which hash chooses a record's partition. The one idea: keys as
people make them (numbers in text, prefixes, identifiers, addresses, times) are counted into partitions, and the counts
are held against an even spread with Pearson's chi-squared test. A good hash looks like chance: about one count in a
hundred is uneven at the 1 % level. Nothing here is timed against a bar.
"""

from __future__ import annotations

import hashlib
import math
import random
import struct
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

KEYS = 100_000
PARTITIONS = (2, 3, 4, 6, 8, 10, 12, 16, 24, 32, 48, 64, 100, 128, 256, 1000)
SEED = 7421
UNEVEN = 0.01

Hash = Callable[[bytes], int]


def key_families(count: int) -> Mapping[str, list[bytes]]:
    """Keys as users choose them, `count` of each kind."""
    chance = random.Random(SEED)
    start = 1_700_000_000
    first = ("anna", "ben", "chidi", "dana", "elif", "farid", "grace", "hugo", "ines", "jun")
    return {
        "1, 2, 3 …": [str(n).encode() for n in range(count)],
        "user-000001 …": [f"user-{n:06d}".encode() for n in range(count)],
        "customer:1:orders …": [f"customer:{n}:orders".encode() for n in range(count)],
        "every 16th number": [str(n * 16).encode() for n in range(count)],
        "u64 big-endian": [struct.pack(">Q", n) for n in range(count)],
        "u32 little-endian": [struct.pack("<I", n) for n in range(count)],
        "UUID, random, text": [str(uuid.UUID(int=chance.getrandbits(128), version=4)).encode() for _ in range(count)],
        "UUID, random, bytes": [chance.randbytes(16) for _ in range(count)],
        "addresses of mail": [f"{chance.choice(first)}.{n}@example.com".encode() for n in range(count)],
        "IPv4 in text": [f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}".encode() for n in range(count)],
        "MAC of one maker": [b"3c:5a:b4:%02x:%02x:%02x" % (n >> 16 & 255, n >> 8 & 255, n & 255) for n in range(count)],
        "times, a second apart": [
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start + n)).encode() for n in range(count)
        ],
        "paths": [f"/shop/{n % 37}/item/{n}/view".encode() for n in range(count)],
        "hexadecimal": [f"{n:x}".encode() for n in range(count)],
    }


def murmur2(key: bytes) -> int:
    """The hash of Kafka's Java client (the key's murmur2, without the sign)."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = (0x9747B28C ^ len(key)) & mask
    whole = len(key) & ~3
    for (k,) in struct.iter_unpack("<I", key[:whole]):
        k = (k * m) & mask
        k ^= k >> 24
        h = ((h * m) & mask) ^ ((k * m) & mask)
    rest = key[whole:]
    if rest:
        h ^= int.from_bytes(rest, "little")
        h = (h * m) & mask
    h ^= h >> 13
    h = (h * m) & mask
    return (h ^ (h >> 15)) & 0x7FFFFFFF


def fnv1a(key: bytes) -> int:
    """FNV-1a, 32 bits."""
    h = 0x811C9DC5
    for byte in key:
        h = ((h ^ byte) * 0x01000193) & 0xFFFFFFFF
    return h


def sha256(key: bytes) -> int:
    """The first eight bytes of SHA-256: as near to chance as can be had."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big")


HASHES: Mapping[str, Hash] = {
    "CRC-32": zlib.crc32,
    "Adler-32": zlib.adler32,
    "FNV-1a": fnv1a,
    "murmur2": murmur2,
    "SHA-256": sha256,
}


def chi_squared(counts: Sequence[int]) -> float:
    """Pearson's statistic against an even spread."""
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 for count in counts) / expected


def tail_probability(statistic: float, degrees: int) -> float:
    """How likely chance alone is at least so uneven (Wilson and Hilferty's approximation, 1931)."""
    spread = 2 / (9 * degrees)
    z = ((statistic / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return 0.5 * math.erfc(z / math.sqrt(2))


class Spread(NamedTuple):
    """How keys fell into partitions."""

    probability: float
    # The fullest partition's share, of an even one.
    fullest: float


def spread_of(hashes: Sequence[int], partitions: int) -> Spread:
    """Count hashes into partitions."""
    counts = [0] * partitions
    for value in hashes:
        counts[value % partitions] += 1
    probability = tail_probability(chi_squared(counts), partitions - 1)
    return Spread(probability, max(counts) * partitions / len(hashes))


def measure(name: str, function: Hash, families: Mapping[str, list[bytes]]) -> None:
    """Print one hash's row, and the families that it spreads worse than chance would."""
    uneven: list[str] = []
    fullest = 0.0
    begin = time.perf_counter()
    hashed = {family: list(map(function, keys)) for family, keys in families.items()}
    each = (time.perf_counter() - begin) / (len(families) * KEYS)
    for family, hashes in hashed.items():
        for partitions in PARTITIONS:
            spread = spread_of(hashes, partitions)
            if partitions <= 128:
                fullest = max(fullest, spread.fullest)
            if spread.probability < UNEVEN:
                uneven.append(f"{family} over {partitions} (fullest {spread.fullest:.2f} of an even share)")
    total = len(families) * len(PARTITIONS)
    print(
        f"{name:10} uneven at {UNEVEN:.0%}: {len(uneven):3} of {total}   "
        f"fullest of up to 128: {fullest:5.2f}   {each * 1e9:6.0f} ns a key"
    )
    for line in uneven[:6]:
        print(f"           {line}")
    if len(uneven) > 6:
        print(f"           … and {len(uneven) - 6} more")


def main() -> int:
    """Print the table; return the exit code."""
    families = key_families(KEYS)
    print(f"{KEYS:,} keys in each of {len(families)} families, over {', '.join(map(str, PARTITIONS))} partitions\n")
    for name, function in HASHES.items():
        measure(name, function, families)
    return 0


if __name__ == "__main__":
    sys.exit(main())
