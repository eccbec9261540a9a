"""`clustersim capture`: record the router of a PyTorch model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from clustersim.commands.arguments import true_or_false, whole_number
from clustersim.commands.screen import run_progress
from clustersim.pick import did_you_mean
from clustersim.types import InputError
from clustersim.writing import check_writable


def command(arguments: list[str]) -> int:
    if arguments and arguments[0] == "hf":
        return _capture_hf(arguments[1:])
    if not arguments or arguments[0] != "tiny":
        raise InputError(f"{' '.join(['capture', *arguments[:1]])}: takes tiny, or hf MODEL --text FILE")
    given: dict[str, Any] = {"out": "tiny_trace"}
    kinds: dict[str, Callable[[str, str], Any]] = {
        "out": lambda key, text: text, "device": lambda key, text: text,
        "seed": whole_number, "steps": whole_number, "scores": true_or_false,
    }  # fmt: skip
    for text in arguments[1:]:
        key, equals, value = text.partition("=")
        if not equals or key not in kinds:
            raise InputError(f"{text}: capture tiny takes {', '.join(f'{k}=...' for k in kinds)}{did_you_mean(key, kinds)}")
        given[key] = kinds[key](key, value)
    from clustersim.capture.tiny import capture_tiny

    out = Path(given.pop("out"))
    check_writable(out, f"capture tiny out={out}")
    with run_progress() as progress:
        facts = capture_tiny(out, progress=progress, **given)
    print(f"{facts['tokens']:,} tokens in {facts['path']}, made in {facts['seconds']:.0f} s")
    print(f"replay it: clustersim trace=file trace.path={facts['path']}")
    return 0


def _capture_hf(arguments: list[str]) -> int:
    """A trace from a Hugging Face model: MODEL --text FILE ... [KEY=VALUE]."""
    kinds: dict[str, Callable[[str, str], Any]] = {
        "out": lambda key, text: text, "device": lambda key, text: text, "dtype": lambda key, text: text,
        "tokenizer": lambda key, text: text, "batch": whole_number, "length": whole_number,
        "sequences": whole_number, "generate": whole_number,
        "scores": true_or_false,
    }  # fmt: skip
    given: dict[str, Any] = {"out": "trace"}
    models, texts = [], []
    text_follows = False
    for text in arguments:
        key, equals, value = text.partition("=")
        if text == "--text":
            text_follows = True
        elif equals and key in kinds:
            given[key], text_follows = kinds[key](key, value), False
        elif text.startswith("-") or (equals and not Path(text).exists()):
            raise InputError(f"{text}: capture hf takes MODEL --text FILE ... and {', '.join(f'{k}=...' for k in kinds)}"
                             + did_you_mean(key, kinds))  # fmt: skip
        elif text_follows:
            texts.append(text)
        else:
            models.append(text)
    if len(models) != 1 or not texts:
        raise InputError(f"{' '.join(['capture hf', *arguments])}: takes one MODEL, and --text FILE ...")
    from clustersim.capture.huggingface import capture_hf

    with run_progress() as progress:
        facts = capture_hf(models[0], texts, given.pop("out"), progress=progress, **given)
    again = f", {facts['resumed']} batches from before" if facts["resumed"] else ""
    print(f"{facts['tokens']:,} tokens of {facts['sequences']:,} sequences in {facts['path']}, {facts['seconds']:.0f} s{again}")
    print(f"look at it: clustersim inspect {facts['path']}")
    return 0
