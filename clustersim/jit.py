"""Compile a function with numba, keep the machine code on disk where a folder can be written, and do without where not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

log = logging.getLogger(__name__)


def njit(function: Callable[..., Any], **options: Any) -> Any:
    """`numba.njit(cache=True)`; without a writable cache folder the function is compiled in every process."""
    import numba

    try:
        return numba.njit(cache=True, error_model="numpy", **options)(function)
    except RuntimeError:        # "cannot cache function: no locator available": raised by the decorator itself
        _say_once()
        return numba.njit(error_model="numpy", **options)(function)


def lean(function: Callable[..., Any]) -> Any:
    """As `njit`, for functions that only change arrays they are given: no reference is counted, which can double the speed.

    What it compiles must not make an array or give one back: numba refuses to build that without its runtime.
    """
    from numba.core.options import DefaultOptions

    known = hasattr(DefaultOptions, "_nrt")     # a numba that does not know it is slower, never wrong
    return njit(function, _nrt=False) if known else njit(function)


@cache
def _say_once() -> None:
    log.warning("numba finds no folder to keep machine code in (set NUMBA_CACHE_DIR to one): loops are compiled in every run")


def inlined(function: Callable[..., Any]) -> Any:
    """For small functions in inner loops: put in place where they are called, as a call counts references to every array."""
    import numba

    return numba.njit(inline="always", error_model="numpy")(function)
