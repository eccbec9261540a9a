"""Small helpers of the kinds: keys that a case must or may have, and what is to be said of a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from clustersim.pick import did_you_mean
from clustersim.types import InputError

_notes: list[str] = []


def note(text: str) -> None:
    """Say something about the row that is being simulated."""
    if text not in _notes:
        _notes.append(text)


@contextmanager
def noting() -> Iterator[list[str]]:
    """The list of what is said while a row is simulated."""
    _notes.clear()
    yield _notes


def needed(case: Mapping[str, Any], *keys: str) -> list[Any]:
    """The values of keys that a case must have.

    Raises:
        InputError: one is missing.
    """
    for key in keys:
        if case.get(key) is None:
            raise InputError(f"case.{key}: is missing")
    return [case[key] for key in keys]


def only(case: Mapping[str, Any], *keys: str) -> None:
    """Check that a case has no key but these (and `what`, `metric`, `statistic`).

    Raises:
        InputError: it has another one.
    """
    known = (*keys, "what", "metric", "statistic")
    for key in case:
        if key not in known:
            raise InputError(f"case.{key}: is not in the vocabulary of {case['what']}{did_you_mean(str(key), known)}")
