"""Which tiles a GEMM is cut into: the rules of kernel libraries. Plain functions of the shape; none knows how long a tile takes.

A rule is `rule(layout, m, n, groups, sms) -> Tile`. `layout` says how the rows lie: `dense`, one matrix; `contiguous`, the
rows of all groups behind each other, each group padded to whole tiles (`m` is their sum, `groups` 1); `masked`, a buffer per
group, `m` the rows expected in each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["deepgemm_2025_02", "deepgemm_2025_07"]

LAYOUTS = ("dense", "contiguous", "masked")
CONTIGUOUS_ROWS = 128           # what DeepGEMM pads the rows of a group to


@dataclass(frozen=True, slots=True)
class Tile:
    """What one SM makes at a time, and how its kernel works."""

    rows: int               # of the output
    columns: int
    shared: str             # what two neighbours fetch together from the L2: rows ("a"), columns ("b") or nothing ("")
    waits: bool             # it is stored to memory before the next begins; else it leaves through the L2 meanwhile


@lru_cache(maxsize=1 << 16)
def deepgemm_2025_02(layout: str, m: int, n: int, groups: int, sms: int) -> Tile:
    """As DeepGEMM's first release (February 2025) chose: fewest waves, then the fullest last wave, then the narrowest.

    64 rows up to m = 64, else 128; 16 to 128 columns in steps of 8. Neighbours share rows from m = 1024 on, in a single
    group whose columns make an even number of whole tiles. The kernel waits until a tile is stored before it turns to the next.

    Source: deepseek-ai/DeepGEMM of February 2025, deep_gemm/jit_kernels/gemm.py (`get_best_configs`) and
    include/deep_gemm/fp8_gemm.cuh.
    """
    rows = 64 if layout != "contiguous" and m <= 64 else 128
    chosen = min((*_waves(m, n, groups, sms, rows, columns), columns) for columns in range(16, 129, 8))[-1]
    return Tile(rows, chosen, "a" if m >= 1024 and groups == 1 and n % (2 * chosen) == 0 and sms % 2 == 0 else "", True)


@lru_cache(maxsize=1 << 16)
def deepgemm_2025_07(layout: str, m: int, n: int, groups: int, sms: int) -> Tile:
    """As DeepGEMM 2 (July 2025) chooses on Hopper: fewest waves, then the fullest last wave.

    64, 128 or (dense) 256 rows, 16 to 256 columns in steps of 16, not both above 128. Of equals: fewer columns at the same rows,
    fewer rows at the same columns, else more columns, as long as the tile is no larger than the matrix. Neighbours share the
    longer side from m = 512 on; in masked groups only rows, if the tiles of a row are even in number. A tile is stored while
    the next is made.

    Source: deepseek-ai/DeepGEMM of July 2025, csrc/jit_kernels/heuristics/common.hpp (`get_best_config`) and
    include/deep_gemm/impls/sm90_fp8_gemm_1d2d.cuh.
    """
    best: tuple[tuple[int, int], int, int] | None = None
    for rows in {"contiguous": (CONTIGUOUS_ROWS,), "masked": (64, 128), "dense": (64, 128, 256)}[layout]:
        for columns in range(16, 257, 16):
            # a tile may meet two scales of the weights per 128 of K, not three; and registers hold 128 x 256 sums
            if columns > 128 and (rows > 128 or math.gcd(columns, 128) != columns - 128):
                continue
            waves = _waves(m, n, groups, sms, rows, columns)
            if best is None or waves < best[0] or (waves == best[0] and _wins_a_tie(m, n, rows, columns, *best[1:])):
                best = waves, rows, columns
    assert best is not None
    _, rows, columns = best
    even = math.ceil(n / columns) % 2 == 0
    legal = {"a": layout != "masked" or even, "b": layout != "masked"}
    order = ("a", "b") if rows > columns else ("b", "a")
    shared = next((side for side in order if legal[side]), "") if m >= 512 and sms % 2 == 0 else ""
    return Tile(rows, columns, shared, False)


def _wins_a_tie(m: int, n: int, rows: int, columns: int, best_rows: int, best_columns: int) -> bool:
    if rows == best_rows:
        return columns < best_columns
    if columns == best_columns:
        return rows < best_rows
    return columns > best_columns and columns <= n and rows <= m


def _waves(m: int, n: int, groups: int, sms: int, rows: int, columns: int) -> tuple[int, int]:
    """Waves of tiles over the SMs, and how many SMs the last one leaves idle: smaller is better in both."""
    tiles = math.ceil(m / rows) * math.ceil(n / columns) * groups
    waves = math.ceil(tiles / sms)
    return waves, waves * sms - tiles
