"""How long a GEMM takes on a GPU: tiles in waves, the SMs' arithmetic, the L2, the memory. Pure functions, no clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clustersim.engine.tiles import CONTIGUOUS_ROWS, Tile
from clustersim.gpuspec import GpuSpec
from clustersim.types import Floats, Ints

K_STEP = 128            # bytes of K that a tile takes in at a time, of its wider operand


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """What the operands of a GEMM weigh, scales included, and at which rate they are multiplied."""

    rate: str                           # bf16 | fp8 | fp4: `GpuSpec.achieved_flops`
    activation_bytes: float             # per value of the left side, in memory
    weight_bytes: float                 # per value of the right side, in memory
    output_bytes: float = 2.0           # BF16
    one_scale: bool = False             # of a whole operand

    @property
    def operand_bytes(self) -> float:
        """Of a value as the SMs multiply it, scales apart: weights narrower than that are widened on their way."""
        return {"bf16": 2.0, "fp8": 1.0, "fp4": 0.5}[self.rate]

    @property
    def scaled(self) -> bool:
        """Whether blocks of 128 columns of the weights have a scale of their own."""
        return self.rate != "bf16" and not self.one_scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """The kernels of a run: a GPU, the rule that cuts GEMMs into tiles (see `tiles`), the SMs left to compute, fixed costs."""

    gpu: GpuSpec
    rule: Callable[[str, int, int, int, int], Tile]
    sms: int                    # that GEMMs are cut for
    overlap: float              # norm that joins the waits for L2 and memory: 1 their sum, large the longer
    launch_s: float             # between two kernels of a stream
    pass_s: float               # a kernel that only moves memory, beyond its bytes
    score_share: float          # of the BF16 peak that attention's scores reach
    free: int | None = None     # SMs left for all other kernels; None: as many


def grouped_seconds(
    rows: Ints, owner: Ints, n_owners: int, n: int, k: int, *, layout: str, precision: Precision, kernels: Kernels
) -> Floats:
    """One grouped GEMM on each of several GPUs: group g multiplies `rows[g]` x k with k x n of its own.

    A persistent kernel: each SM makes one tile after the other, wave by wave, at the rate that large GEMMs reach. Below 64
    columns the tensor cores wait for the rows; a tile that shares a weight scale with its neighbour takes what the next multiple
    of 64 takes. Beside it operands come from memory into the L2 once and from there to the SM of every tile; these two waits
    hide each other in part. The longer counts; to it come the first load (K prologue) and the tiles' way out. The kernel is
    never faster than memory delivers the rows and the weights of groups that have any, and takes the output.

    Args:
        rows: int [groups].
        owner: int [groups], GPU of the group, from 0.
        n_owners: GPUs.
        n: columns.
        k: inner dimension.
        layout: `contiguous` or `masked` (see `tiles`); a single matrix per GPU is `dense`.
        precision: bytes and rate.

    Returns:
        float [gpus] seconds, without the launch; 0 without rows.
    """
    gpu, sms = kernels.gpu, kernels.sms
    used = rows > 0
    padded = -(-rows // CONTIGUOUS_ROWS) * CONTIGUOUS_ROWS
    total, groups = _sums(owner, rows, n_owners), _sums(owner, np.ones_like(rows), n_owners)
    lines = _sums(owner, padded, n_owners) if layout == "contiguous" else total
    expected = lines if layout == "contiguous" else -(-total // np.maximum(groups, 1))
    chosen = _choices(layout, expected, n, np.where(layout == "masked", groups, 1), kernels)
    tile_rows, tile_columns = chosen.rows, chosen.columns
    tall = -(-(padded if layout == "contiguous" else rows) // tile_rows[owner])
    tiles = _sums(owner, tall, n_owners) * -(-n // tile_columns)

    width = np.maximum(tile_columns, 64)
    if precision.scaled:
        width = np.where((K_STEP % tile_columns != 0) & (tile_columns % K_STEP != 0), -(-width // 64) * 64, width)
    steps = -(-k * precision.operand_bytes // K_STEP)
    depth = K_STEP / precision.operand_bytes                       # values of K in a step
    sm_flops = gpu.achieved_flops(precision.rate) / _of(gpu.sms)
    multiply = 2.0 * tile_rows * width * depth / sm_flops
    operands = (tile_rows / np.where(chosen.shared_a, 2, 1) + tile_columns / np.where(chosen.shared_b, 2, 1)) * K_STEP
    stored = tile_rows * tile_columns * precision.output_bytes

    fetched = total * k * precision.activation_bytes + _sums(owner, used, n_owners) * float(n * k) * precision.weight_bytes
    from_memory = fetched / _of(gpu.memory_achieved)
    from_l2 = tiles * steps * operands / _of(gpu.l2_bandwidth)
    brought = (from_memory**kernels.overlap + from_l2**kernels.overlap) ** (1 / kernels.overlap)
    waves = -(-tiles // sms)
    leaves = np.where(
        chosen.waits, waves * _of(gpu.memory_latency) + tiles * stored / _of(gpu.memory_achieved),
        tiles * stored / _of(gpu.l2_bandwidth),
    )  # fmt: skip
    seconds = _of(gpu.memory_latency) + np.maximum(waves * steps * multiply, brought) + leaves
    memory = _of(gpu.memory_latency) + (fetched + total * n * precision.output_bytes) / _of(gpu.memory_achieved)
    result: Floats = np.where(total > 0, np.maximum(seconds, memory), 0.0)
    return result


def dense_gemm_seconds(rows: Ints, n: int, k: int, *, precision: Precision, kernels: Kernels) -> Floats:
    """As `grouped_seconds` for one dense GEMM on each GPU, rows int [gpus]."""
    return grouped_seconds(
        rows, np.arange(rows.size), rows.size, n, k, layout="dense", precision=precision, kernels=kernels
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Chosen:
    rows: Ints          # [gpus]
    columns: Ints
    shared_a: Ints
    shared_b: Ints
    waits: Ints


def _choices(layout: str, expected: Ints, n: int, groups: Ints, kernels: Kernels) -> _Chosen:
    """The tile of each GPU; the rule is asked once for each shape."""
    shapes, which = np.unique(np.stack((expected, groups)), axis=1, return_inverse=True)
    tiles = [kernels.rule(layout, max(1, int(m)), n, max(1, int(g)), kernels.sms) for m, g in shapes.T]
    fields = np.array([(t.rows, t.columns, t.shared == "a", t.shared == "b", t.waits) for t in tiles], np.int64)
    return _Chosen(*fields[which.reshape(-1)].T)


def _sums(owner: Ints, values: np.ndarray, n: int) -> Ints:
    return np.bincount(owner, values, n).astype(np.int64)


def _of(value: float | None) -> float:
    assert value is not None, "GpuSpec.need_kernels was not asked"
    return value
