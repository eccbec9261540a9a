"""What the data sheet says of one GPU, and what benchmarks reach of it. Knows no kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass

from clustersim.types import InputError

_PEAKS = ("bf16_flops", "fp8_flops", "memory", "memory_bandwidth")
_KERNELS = ("sms", "l2_bandwidth", "memory_latency", "bf16_achieved", "memory_achieved")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """Peak rates of one GPU from its data sheet, and what its kernels meet. Rates the data sheet does not have are None."""

    name: str
    bf16_flops: float                       # FLOP/s, dense
    fp8_flops: float                        # FLOP/s, dense; the BF16 rate where the chip has no FP8
    memory: float                           # bytes
    memory_bandwidth: float                 # bytes/s
    fp4_flops: float | None = None          # FLOP/s, dense; None: no FP4 units, operands are widened to BF16
    sms: int | None = None                  # streaming multiprocessors
    l2_bandwidth: float | None = None       # bytes/s from the L2 to all SMs
    memory_latency: float | None = None     # seconds of one load that misses the L2
    bf16_achieved: float | None = None      # FLOP/s of a large GEMM
    fp8_achieved: float | None = None       # the same; None: no FP8 units
    fp4_achieved: float | None = None
    memory_achieved: float | None = None    # bytes/s of a kernel that streams

    def __post_init__(self) -> None:
        for key in self.__slots__:
            value = getattr(self, key)
            if key == "name" or (value is None and key not in _PEAKS):
                continue
            if isinstance(value, bool) or not 0 < value < math.inf:
                raise InputError(f"gpu.{key.removesuffix('_flops')} = {value!r}: must be above 0 and finite")
        if self.sms is not None and self.sms != int(self.sms):
            raise InputError(f"gpu.sms = {self.sms!r}: must be a whole number")
        for reached, nominal in (
            ("bf16_achieved", self.bf16_flops), ("fp8_achieved", self.fp8_flops), ("fp4_achieved", self.fp4_flops),
            ("memory_achieved", self.memory_bandwidth),
        ):  # fmt: skip
            value = getattr(self, reached)
            if value is not None and not value <= (nominal or 0) * (1 + 1e-9):
                raise InputError(f"gpu.{reached} = {value!r}: cannot exceed the data sheet's {nominal!r}")

    def peak_flops(self, dtype: str) -> float:
        """FLOP/s of GEMMs in `dtype`, `bf16`, `fp8` or `fp4`."""
        return {"bf16": self.bf16_flops, "fp8": self.fp8_flops, "fp4": self.fp4_flops or self.bf16_flops}[dtype]

    def achieved_flops(self, dtype: str) -> float:
        """FLOP/s that large GEMMs in `dtype` reach; a format that the chip does not multiply runs at the BF16 rate."""
        bf16 = _given(self.bf16_achieved)
        return {"bf16": bf16, "fp8": self.fp8_achieved or bf16, "fp4": self.fp4_achieved or bf16}[dtype]

    def need_kernels(self) -> None:
        """Check that everything is there that the kernel model asks for.

        Raises:
            InputError: a key is missing.
        """
        for key in _KERNELS:
            if getattr(self, key) is None:
                raise InputError(
                    f"topology.gpu.{key}: {self.name} does not say it, and compute=kernels needs it (roofline does not)"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Watts of the devices of a machine, without and with all their work; None: not known."""

    gpu_idle: float | None = None
    gpu_peak: float | None = None
    nic_idle: float | None = None
    nic_peak: float | None = None
    port_idle: float | None = None          # a port of a network switch, its share of the whole switch
    port_peak: float | None = None

    def __post_init__(self) -> None:
        for part in ("gpu", "nic", "port"):
            idle, peak = getattr(self, f"{part}_idle"), getattr(self, f"{part}_peak")
            if (idle is None) != (peak is None):
                missing = "idle" if idle is None else "peak"
                raise InputError(f"topology.power.{part}_{missing}: is needed beside the other, or both are null")
            if idle is not None and peak is not None and idle > peak:
                raise InputError(f"topology.power.{part}_idle = {idle:g} W: cannot exceed {part}_peak = {peak:g} W")


def _given(value: float | None) -> float:
    assert value is not None, "need_kernels was not asked"
    return value
