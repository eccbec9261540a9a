"""Quantities as people write them, to and from SI floats. The only place where units are converted; knows no configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction

from clustersim.types import InputError

_DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}

_BYTES = {prefix + "B": Fraction(n) for prefix, n in (_DECIMAL | _BINARY).items()}
_BANDWIDTH = {
    f"{prefix}{letter}{per}": Fraction(n, bits)
    for prefix, n in (_DECIMAL | _BINARY).items()
    for letter, bits in (("b", 8), ("B", 1))
    for per in ("/s", "ps")
}
_SECONDS = {"ns": Fraction(1, 10**9), "ms": Fraction(1, 1000), "s": Fraction(1), "min": Fraction(60), "h": Fraction(3600)}
_SECONDS |= {micro + "s": Fraction(1, 10**6) for micro in ("u", "\N{MICRO SIGN}", "\N{GREEK SMALL LETTER MU}")}
_FLOPS = {prefix + unit: Fraction(n) for prefix, n in _DECIMAL.items() for unit in ("FLOP/s", "FLOPS")}

_WATTS = {prefix + "W": Fraction(n) for prefix, n in _DECIMAL.items()}

_QUANTITY = re.compile(r"([+-]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][+-]?\d{1,3})?)\s*(\D\S*)?", re.ASCII)


def parse_bandwidth(value: object, key: str) -> float:
    """Bytes per second of `400Gb/s` (bits), `450 GB/s`, `50GBps`; above 0.

    `b` is a bit and `B` a byte, `k M G T P` are powers of 1000 and `Ki Mi Gi Ti Pi` of 1024. A bare number is refused:
    nothing says whether it counts bits or bytes.

    Raises:
        InputError: not text, no such unit, or not a finite number above 0; names `key`.
    """
    return _parse(value, key, _BANDWIDTH, "a bandwidth above 0 with its unit (b = bit, B = byte), for example 400Gb/s or 50 GB/s")


def parse_seconds(value: object, key: str) -> float:
    """Seconds of `3.7us`, `936.25 ns`, `2 ms`, `1 s`, `5 min`, `1 h`; 0 needs no unit.

    Raises:
        InputError: a bare number other than 0, no such unit, or not a finite number from 0 up; names `key`.
    """
    return _parse(value, key, _SECONDS, "a time from 0 up with its unit (ns, us, ms, s, min, h), for example 3.7us", zero=True)


def parse_bytes(value: object, key: str) -> float:
    """Bytes of `80 GB` (1000³) or `64 GiB` (1024³); 0 needs no unit. Sizes in bits are refused.

    Raises:
        InputError: a bare number other than 0, no such unit, or not a finite number from 0 up; names `key`.
    """
    return _parse(value, key, _BYTES, "a size from 0 up in bytes (kB = 1000 B, KiB = 1024 B), for example 64 GiB", zero=True)


def parse_flops(value: object, key: str) -> float:
    """FLOP/s of `989.4 TFLOP/s` or `989.4 TFLOPS`; above 0. A bare number is refused: data sheets write it in TFLOP/s.

    Raises:
        InputError: not text, no such unit, or not a finite number above 0; names `key`.
    """
    return _parse(value, key, _FLOPS, "a rate above 0 with its unit, for example 989.4 TFLOP/s")


def parse_watts(value: object, key: str) -> float:
    """Watts of `700 W` or `10.2 kW`; 0 needs no unit.

    Raises:
        InputError: a bare number other than 0, no such unit, or not a finite number from 0 up; names `key`.
    """
    return _parse(value, key, _WATTS, "a power from 0 up with its unit, for example 700 W", zero=True)


def format_seconds(seconds: float) -> str:
    """`12.3 us`, `4.56 ms` or `7.89 s`: three significant digits, for people."""
    return _format(seconds, ((1e-6, "us"), (1e-3, "ms"), (1.0, "s")), zero="0 s")


def format_bytes(nbytes: float) -> str:
    """`512 B`, `1.23 kB`, `45.6 MB`, `7.89 GB`, ... (powers of 1000): three significant digits, for people."""
    return _format(nbytes, tuple((float(_DECIMAL[prefix]), prefix + "B") for prefix in ("", "k", "M", "G", "T", "P")), zero="0 B")


def format_bandwidth(bytes_per_second: float) -> str:
    """`45.0 GB/s` and the like, always in bytes: three significant digits, for people."""
    text = format_bytes(bytes_per_second)
    return text if text == "n/a" else text + "/s"


def _parse(value: object, key: str, units: Mapping[str, Fraction], rule: str, *, zero: bool = False) -> float:
    """`value` in SI, correctly rounded: the number and its unit are multiplied exactly. `zero`: 0 is allowed, also bare."""
    refusal = InputError(f"{key} = {value!r}: expected {rule}")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise refusal
    if zero and not isinstance(value, str) and value == 0:
        return 0.0
    match = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise refusal
    number, unit = Fraction(match[1]), match[2]
    if unit is None and zero and number == 0:
        return 0.0
    if unit not in units:
        raise refusal
    try:
        result = float(number * units[unit])
    except OverflowError:
        raise refusal from None
    if result < 0 or (result == 0 and not (zero and number == 0)):
        raise refusal
    return result


def _format(value: float, units: tuple[tuple[float, str], ...], *, zero: str) -> str:
    """Three significant digits in the largest unit that leaves at least 1; `n/a` for what is no number."""
    if math.isnan(value):
        return "n/a"
    if value == 0:
        return zero
    if math.isinf(value):
        return f"{value} {units[-1][1]}"
    rounded = float(f"{value:.2e}")      # before the unit is chosen: 999.7 us is 1.00 ms
    scale, unit = max((u for u in units if u[0] * (1 - 1e-9) <= abs(rounded)), default=units[0])
    shown = rounded / scale
    if abs(shown) >= 100 or (unit == "B" and shown == int(shown)):
        return f"{shown:.0f} {unit}"
    return f"{shown:#.3g} {unit}"
