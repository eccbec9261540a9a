"""What the data sheet says of one GPU, what benchmarks reach of it, and what devices draw. Knows no kernel, links no GPUs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from clustersim import units
from clustersim.pick import did_you_mean
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


def gpu_from(given: Mapping[str, Any]) -> GpuSpec:
    """The GPU that the section `gpu` of a topology describes; its keys are known to be there.

    Raises:
        InputError: a value without a unit or out of its range.
    """

    def said(key: str, parse: Callable[[object, str], float]) -> float | None:
        value = given.get(key)
        return None if value is None else parse(value, f"topology.gpu.{key}")

    return GpuSpec(
        name=str(given["name"]),
        bf16_flops=units.parse_flops(given["bf16"], "topology.gpu.bf16"),
        fp8_flops=units.parse_flops(given["fp8"] if given["fp8"] is not None else given["bf16"], "topology.gpu.fp8"),
        fp4_flops=said("fp4", units.parse_flops),
        memory=units.parse_bytes(given["memory"], "topology.gpu.memory"),
        memory_bandwidth=units.parse_bandwidth(given["memory_bandwidth"], "topology.gpu.memory_bandwidth"),
        sms=_whole("topology.gpu.sms", given.get("sms")),
        l2_bandwidth=said("l2_bandwidth", units.parse_bandwidth),
        memory_latency=said("memory_latency", units.parse_seconds),
        bf16_achieved=said("bf16_achieved", units.parse_flops),
        fp8_achieved=said("fp8_achieved", units.parse_flops),
        fp4_achieved=said("fp4_achieved", units.parse_flops),
        memory_achieved=said("memory_achieved", units.parse_bandwidth),
    )


def power_from(given: Any) -> Power | None:
    """What the section `power` of a topology says; None for one that leaves it out. Single devices may be left out too.

    Raises:
        InputError: a key that is not known, a value without a unit or below 0.
    """
    known = [field.name for field in fields(Power)]
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise InputError(f"topology.power={given}: must have {', '.join(known)}, or be null")
    for key in given:
        if key not in known:
            near = did_you_mean(str(key), known)
            raise InputError(f"topology.power.{key}: there is no such key{near} (known: {', '.join(known)})")
    return Power(**{key: units.parse_watts(value, f"topology.power.{key}") for key, value in given.items() if value is not None})


def _whole(key: str, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InputError(f"{key}={value}: must be a whole number from 1 up")
    return value


def _given(value: float | None) -> float:
    assert value is not None, "need_kernels was not asked"
    return value
