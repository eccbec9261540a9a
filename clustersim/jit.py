"""Compile a function with numba, keep the machine code on disk where a folder can be written, and do without where not."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def njit(function: Callable[..., Any], **options: Any) -> Any:
    """`numba.njit(cache=True)`; without a writable cache folder the function is compiled in every process.

    Machine code on disk is good as long as the file of the function is as it was, and those of all compiled functions that
    its module has imported, or these of theirs. (numba looks at the first alone.) Numbers that are compiled in stand in
    one of these files, as a test says: where others would come from is not looked at.
    """
    import numba

    try:
        made = numba.njit(cache=True, error_model="numpy", **options)(function)
    except RuntimeError:        # "cannot cache function: no locator available": raised by the decorator itself
        _say_once("numba finds no folder to keep machine code in (set NUMBA_CACHE_DIR to one)")
        return numba.njit(error_model="numpy", **options)(function)
    if helpers := _helper_files(function):
        try:
            index = made._cache._cache_file
            index._source_stamp = (index._source_stamp, *(_digest(file) for file in sorted(helpers)))
        except (AttributeError, OSError):       # this numba keeps its index otherwise; a file inside an archive
            _say_once("this numba cannot be told when machine code is out of date")
            return numba.njit(error_model="numpy", **options)(function)
    return made


def _helper_files(function: Any) -> set[str]:
    """Where the compiled functions stand that the module of a function has imported, and those have that it imported."""
    from numba.core.dispatcher import Dispatcher

    own = function.__code__.co_filename
    found, ahead = {own}, [function]
    while ahead:
        for helper in ahead.pop().__globals__.values():
            if isinstance(helper, Dispatcher) and helper.py_func.__code__.co_filename not in found:
                found.add(helper.py_func.__code__.co_filename)
                ahead.append(helper.py_func)
    return found - {own}


@cache
def _digest(file: str) -> bytes:
    return hashlib.sha256(Path(file).read_bytes()).digest()


def lean(function: Callable[..., Any], **options: Any) -> Any:
    """As `njit`, for functions that only change arrays they are given: no reference is counted, which can double the speed.

    What it compiles must not make an array or give one back: numba refuses to build that without its runtime.
    """
    from numba.core.options import DefaultOptions

    known = hasattr(DefaultOptions, "_nrt")     # a numba that does not know it is slower, never wrong
    return njit(function, _nrt=False, **options) if known else njit(function, **options)


def spread(function: Callable[..., Any]) -> Any:
    """As `lean`, put in place where it is called: a call in an inner loop passes seven words for every array it is given."""
    return lean(function, forceinline=True)


@cache
def _say_once(why: str) -> None:
    log.warning("%s: loops are compiled in every run", why)


def inlined(function: Callable[..., Any]) -> Any:
    """For small functions in inner loops: put in place where they are called, as a call counts references to every array."""
    import numba

    return numba.njit(inline="always", error_model="numpy")(function)
