"""What the data sheet says of one GPU. Peaks, not what a kernel reaches."""

from __future__ import annotations

import math
from dataclasses import dataclass

from clustersim.types import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """Peak rates of one GPU, from its data sheet."""

    name: str
    bf16_flops: float           # FLOP/s, dense
    fp8_flops: float            # FLOP/s, dense; the BF16 rate where the chip has no FP8
    memory: float               # bytes
    memory_bandwidth: float     # bytes/s

    def __post_init__(self) -> None:
        for key in ("bf16_flops", "fp8_flops", "memory", "memory_bandwidth"):
            value = getattr(self, key)
            if not 0 < value < math.inf:
                raise InputError(f"gpu.{key.removesuffix('_flops')} = {value!r}: must be above 0 and finite")

    def peak_flops(self, dtype: str) -> float:
        """FLOP/s of GEMMs in `dtype`, `bf16` or `fp8`."""
        return {"bf16": self.bf16_flops, "fp8": self.fp8_flops}[dtype]
