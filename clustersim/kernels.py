"""What the software of a kernel generation costs: constants from its YAML, with where each comes from. Applies none of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from clustersim import units
from clustersim.gpuspec import GpuSpec
from clustersim.pick import did_you_mean
from clustersim.places import PACKAGE, yaml_fault
from clustersim.types import InputError

FOLDER = PACKAGE / "conf" / "kernel"
EVIDENCE = ("data sheet", "source code", "literature", "calibrated on these rows", "calibrated on yours", "transferred")
SHARED = "ports"
KEYS = ("value", "evidence", "source", "fitted", "rows", "interval", "same_as")


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """One constant, in SI."""

    value: float
    evidence: str               # one of EVIDENCE
    source: str
    fitted: bool                # found by fitting measurements, here or by a user
    rows: str                   # which measurements set it
    interval: tuple[float, float] | None
    same_as: str                # `kernel.key` of the constant whose value this one takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """The constants of one kernel generation."""

    name: str
    title: str
    constants: Mapping[str, Constant]
    covers: Mapping[str, tuple[float, float]]       # the range in which they were found: tokens_per_gpu, sms, gpus, hidden ...
    limits: Mapping[str, float]                     # what the kernel itself refuses to go beyond

    def __getitem__(self, key: str) -> float:
        if key not in self.constants:
            raise InputError(f"kernel {self.name}: has no {key}{did_you_mean(key, self.constants)}")
        return self.constants[key].value

    @property
    def fitted(self) -> tuple[str, ...]:
        """The constants that were found by fitting, those taken over from other kernels apart."""
        return tuple(key for key, one in self.constants.items() if one.fitted and not one.same_as)

    def beyond(self, where: Mapping[str, float]) -> tuple[str, ...]:
        """What to say of a use outside the range that the constants were found in; one text per key, () inside."""
        said = []
        for key, value in where.items():
            low, high = self.covers.get(key, (value, value))
            if not low <= value <= high:
                said.append(f"kernel {self.name}: {key} {value:g} is outside {low:g} to {high:g}, where it was calibrated")
        return tuple(said)

    def refuse(self, where: Mapping[str, float]) -> None:
        """Check the limits of the kernel itself.

        Raises:
            InputError: one is passed.
        """
        for key, value in where.items():
            if value > self.limits.get(key, value):
                raise InputError(f"kernel {self.name}: {key} = {value:g}, and it supports at most {self.limits[key]:g}")


def slowness(kernel: Kernel, gpu: GpuSpec) -> float:
    """How much longer chains of loads, flags and fences take on a GPU than on the one its constants were found on.

    They wait for memory one after the other, so by the ratio of what a load takes; 1 where a topology does not say that.
    """
    return gpu.memory_latency / kernel["memory_latency"] if gpu.memory_latency is not None else 1.0


def launched(kernel: Kernel, gpu: GpuSpec) -> float:
    """Seconds from the start of a pass until its bytes begin to move: of `kernels` one after the other."""
    return kernel["kernels"] * kernel["round"] * slowness(kernel, gpu)


def load_kernel(name: str) -> Kernel:
    """A kernel generation of `conf/kernel/`, or of a user's YAML file.

    Raises:
        InputError: no such kernel, or a file that is not one; names the key.
    """
    path = kernel_file(name)
    kernel = _read(name, path, path.stat().st_mtime_ns)
    if not _tried:
        return kernel
    constants = {
        key: replace(one, value=_tried.get(one.same_as or f"{kernel.name}.{key}", one.value))
        for key, one in kernel.constants.items()
    }
    return replace(kernel, constants=constants)


_tried: dict[str, float] = {}


@contextmanager
def trying(values: Mapping[str, float]) -> Iterator[None]:
    """Within this, kernels have these values for constants (`kernel.key`, in SI), and for those taken over from them."""
    before = dict(_tried)
    _tried.update(values)
    try:
        yield
    finally:
        _tried.clear()
        _tried.update(before)


def tried() -> tuple[tuple[str, float], ...]:
    """What `trying` has set, for those who keep what came of it."""
    return tuple(sorted(_tried.items()))


def fitted_constants() -> dict[str, Constant]:
    """All constants of the package that were found by fitting, as `kernel.key`."""
    found: dict[str, Constant] = {}
    for file in sorted(FOLDER.glob("*.yaml")):
        kernel = load_kernel(file.stem)
        found |= {f"{kernel.name}.{key}": kernel.constants[key] for key in kernel.fitted}
    return found


def kernel_file(name: str) -> Path:
    """The file of a kernel generation.

    Raises:
        InputError: no such kernel.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = [file.stem for file in FOLDER.glob("*.yaml")]
        raise InputError(f"kernel={name}: there is no such file{did_you_mean(name, known)} (known: {', '.join(sorted(known))})")
    return path


def kernel_digest(name: str) -> str:
    """sha256 of the values of a kernel's constants, of those too that it takes over from others.

    Raises:
        InputError: no such kernel, or a file that is not one.
    """
    values = sorted((key, one.value) for key, one in load_kernel(name).constants.items())
    return hashlib.sha256(repr(values).encode()).hexdigest()


@lru_cache(maxsize=64)
def _read(name: str, path: Path, _: int) -> Kernel:
    import yaml

    text = path.read_text(encoding="utf-8")
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"kernel={name}: not a YAML file: {yaml_fault(error)}") from error
    if not isinstance(given, Mapping) or not isinstance(given.get("constants"), Mapping):
        raise InputError(f"kernel={name}: {path} has no constants")
    return Kernel(
        name=path.stem, title=text.partition("\n")[0].lstrip("# "),
        constants={key: _constant(f"kernel {name}.{key}", one) for key, one in given["constants"].items()},
        covers={key: (float(low), float(high)) for key, (low, high) in (given.get("covers") or {}).items()},
        limits={key: float(most) for key, most in (given.get("limits") or {}).items()},
    )  # fmt: skip


def _constant(key: str, given: Any) -> Constant:
    if not isinstance(given, Mapping):
        raise InputError(f"{key}: must have value, evidence and source")
    if unknown := [k for k in given if k not in KEYS]:
        raise InputError(f"{key}.{unknown[0]}: there is no such key{did_you_mean(str(unknown[0]), KEYS)}")
    if same := given.get("same_as"):
        kernel, _, leaf = str(same).rpartition(".")
        if kernel != SHARED:
            raise InputError(f"{key}.same_as={same}: only constants of {SHARED} can be taken over")
        other = load_kernel(kernel)
        if leaf not in other.constants:
            raise InputError(f"{key}.same_as={same}: kernel {kernel} has no {leaf}")
        return Constant(
            value=other[leaf], evidence="transferred", source=str(given.get("source", "")), fitted=False, rows="",
            interval=None, same_as=str(same),
        )  # fmt: skip
    if given.get("evidence") not in EVIDENCE:
        raise InputError(f"{key}.evidence={given.get('evidence')}: must be one of {', '.join(EVIDENCE)}")
    interval = given.get("interval")
    return Constant(
        value=quantity(given.get("value"), f"{key}.value"), evidence=given["evidence"], source=str(given.get("source", "")),
        fitted=bool(given.get("fitted", False)), rows=str(given.get("rows", "")),
        interval=tuple(quantity(end, f"{key}.interval") for end in interval) if interval else None, same_as="",  # type: ignore[arg-type]
    )  # fmt: skip


def quantity(value: Any, key: str) -> float:
    """A plain number, or text with a unit of time, bandwidth or size, in SI.

    Raises:
        InputError: anything else.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    for parse in (units.parse_seconds, units.parse_bandwidth, units.parse_bytes):
        try:
            return parse(value, key)
        except InputError:
            continue
    raise InputError(f"{key}={value}: must be a number, a time (3.7us), a bandwidth (20 GB/s) or a size (512 KiB)")
