"""Small helpers of the kinds: keys that a case must or may have, and what is to be said of a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from clustersim.pick import did_you_mean
from clustersim.types import InputError

_notes: list[str] = []

WHOLE = {               # keys whose value is a whole number from 1 up, and what is far beyond any machine or kernel
    "gpus": 1 << 14, "gpus_per_node": 1 << 14, "hidden": 1 << 20, "top_k": 1 << 12, "experts": 1 << 16, "sms": 1 << 12,
    "m": 1 << 24, "n": 1 << 24, "k": 1 << 24, "groups": 1 << 16, "expert_ffn": 1 << 24, "tokens": 1 << 32,
    "tokens_per_gpu": 1 << 24, "buffer_tokens": 1 << 24, "bytes_per_gpu": 1 << 50, "slots": 1 << 16,
}  # fmt: skip
TEXT = (
    "gpu", "nic", "exchange", "phase", "payload", "routing", "kernel", "metric", "statistic", "dtype", "layout", "through",
)


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


def typed(case: Mapping[str, Any]) -> None:
    """Check that the values of a case are of the kind that their keys ask for; a key without a value counts as left out.

    Raises:
        InputError: one is not.
    """
    for key, value in case.items():
        if value is None:
            continue
        if key in TEXT and not isinstance(value, str):
            raise InputError(f"case.{key}={value}: must be text")
        if key in WHOLE and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= WHOLE[key]):
            raise InputError(f"case.{key}={value}: must be a whole number from 1 to {WHOLE[key]}")


def only(case: Mapping[str, Any], *keys: str) -> None:
    """Check that a case has no key but these (and `what`, `metric`, `statistic`).

    Raises:
        InputError: it has another one.
    """
    known = (*keys, "what", "metric", "statistic")
    for key in case:
        if key not in known:
            raise InputError(f"case.{key}: is not in the vocabulary of {case['what']}{did_you_mean(str(key), known)}")
