"""Trains a small mixture-of-experts model on text that every Python carries and records its router; imports torch only to run."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import clustersim
from clustersim.capture.text import DOMAINS, VOCABULARY, Corpus, Tokens, load_corpus
from clustersim.types import InputError, Trace
from clustersim.workload.trace import write_trace

STEPS = 250                     # training steps
TRAIN_BATCH = 16                # sequences per training step, half of each domain
ROUTE_BATCH = 16                # sequences per recorded forward pass
BALANCE = 0.01                  # weight of each layer's load-balancing loss (Fedus et al. 2021, section 2.2)

Progress = Callable[[float, str], None]


def capture_tiny(
    out: str | Path,
    *,
    device: str = "auto",
    seed: int = 0,
    steps: int = STEPS,
    sequences: int = 192,
    length: int = 128,
    scores: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains the model, routes held-out text of both domains through it and writes the trace into the folder `out`.

    The first half of the sequences is code, the second prose. The same arguments on the same machine, Python and torch
    give the same trace.

    Args:
        device: "cpu", "cuda" or any other name torch has; "auto" is the GPU when there is one, else the CPU.
        seed: of the weights, the batches and the choice of what is held out.
        steps: training steps, of 16 sequences each.
        sequences: recorded sequences in all, even.
        length: tokens per sequence, in training and in the trace.
        scores: record the router's logits too (float16, before the softmax).
        progress: told (fraction done, what is being done).

    Returns:
        What the metadata says of the training, and `path`, `tokens`, `seconds`.

    Raises:
        InputError: torch is missing, the device is not there, a number is out of range, `out` is a file.
    """
    out = _checked(Path(out), steps=steps, sequences=sequences, length=length, seed=seed)
    model, torch = _torch()
    where = _device(torch, device)
    tell = progress or (lambda fraction, message: None)
    begin = time.perf_counter()

    tell(0.0, "reading and tokenising the standard library")
    wanted = int(1.2 * steps * TRAIN_BATCH * length / len(DOMAINS))
    corpus = load_corpus(seed=seed, sequences=sequences // 2, length=length, train_tokens=max(wanted, 20_000))
    shape = model.Shape(vocabulary=len(corpus.vocabulary), length=length)
    with _repeatable(torch, where) as threads:
        parameters = model.initial_parameters(shape, where, seed)
        losses = model.train(
            parameters, shape, _batches(corpus, seed, length), steps=steps, balance=BALANCE,
            progress=lambda fraction, message: tell(0.03 + 0.9 * fraction, message),
        )
        tell(0.95, "routing held-out text")
        trace, held_out = _record(model, parameters, shape, corpus, scores)
    about = {
        "training": {
            "steps": steps, "tokens": steps * TRAIN_BATCH * length, "batch_sequences": TRAIN_BATCH,
            "loss_nats_first": round(losses[0], 4), "loss_nats_last": round(float(np.mean(losses[-20:])), 4),
            "held_out_loss_nats": {domain: round(value, 4) for domain, value in held_out.items()},
            "balance_loss_weight": BALANCE, "optimizer": "AdamW", "seed": seed,
        },
        "shape": {name: getattr(shape, name) for name in ("vocabulary", "length", "n_layers", "hidden", "heads", "ffn")}
        | {"parameters": sum(value.numel() for value in parameters.values())},
        "text": _about_text(corpus),
        "made_with": _about_machine(torch, where, threads),
    }
    tell(0.99, "writing")
    write_trace(replace(trace, meta=_model_meta(shape, scores) | about), out)
    tell(1.0, "done")
    return about | {"path": str(out), "tokens": trace.n_tokens, "seconds": time.perf_counter() - begin}


def _checked(out: Path, *, sequences: int, **numbers: int) -> Path:
    """`out`, when it and the numbers can be used; InputError otherwise."""
    for name, value in {"sequences": sequences, **numbers}.items():
        if value < (least := {"steps": 1, "sequences": 2, "length": 2, "seed": 0}[name]):
            raise InputError(f"{name}={value}: must be at least {least}")
    if sequences % 2:
        raise InputError(f"sequences={sequences}: must be even, half of each domain")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; a trace is a folder")
    return out


def _about_text(corpus: Corpus) -> dict[str, Any]:
    return {
        "sources": dict(corpus.sources), "tokeniser": f"word pieces, {VOCABULARY} tokens",
        "train_tokens": {domain: int(corpus.train[domain].size) for domain in DOMAINS},
        "held_out_documents": {domain: sorted(set(corpus.documents[domain])) for domain in DOMAINS},
    }


def _about_machine(torch: ModuleType, device: Any, threads: int) -> dict[str, Any]:
    return {
        "clustersim": clustersim.__version__, "python": platform.python_version(), "torch": torch.__version__,
        "device": device.type, "threads": threads,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
    }


def _torch() -> tuple[ModuleType, ModuleType]:
    """(our model, torch); everything before needs neither."""
    try:
        import torch

        from clustersim.capture import model
    except ImportError as error:
        if (error.name or "").split(".")[0] != "torch":
            raise
        raise InputError("capture tiny needs PyTorch, which is not installed: pip install 'clustersim[capture]'") from error
    return model, torch


def _device(torch: ModuleType, name: str) -> Any:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device={name}: torch cannot use it ({reason}); auto, cpu and cuda are known") from error
    return device


@contextmanager
def _repeatable(torch: ModuleType, device: Any) -> Iterator[int]:
    """Deterministic kernels, and denormals as zeros (they slow a CPU down); yields the threads, and puts the settings back.

    One thread: sums then come out alike on any number of cores, and products this small gain little from a second one
    (0.36 s per step; two threads 0.27 s on idle cores, but many times more when another program wants one of them).
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")      # or cuBLAS sums in an order that varies
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_flush_denormal(True)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_flush_denormal(False)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)


def _batches(corpus: Corpus, seed: int, length: int) -> Callable[[int], Tokens]:
    """step -> [16, length + 1] token ids: windows anywhere in the training text, half of each domain."""

    def batch(step: int) -> Tokens:
        rng = np.random.default_rng((seed, step))
        rows = []
        for domain in DOMAINS:
            text = corpus.train[domain]
            starts = rng.integers(0, text.size - length, TRAIN_BATCH // len(DOMAINS))
            rows += [text[start : start + length + 1] for start in starts]
        return np.stack(rows)

    return batch


def _record(model: ModuleType, parameters: Any, shape: Any, corpus: Corpus, scores: bool) -> tuple[Trace, dict[str, float]]:
    """(the trace of the held-out text, loss in nats per domain); domains one after the other, a step per 16 sequences."""
    parts: dict[str, list[Any]] = {"experts": [], "weights": [], "logits": []}
    step: list[int] = []
    losses = {}
    for domain in DOMAINS:
        text, total = corpus.held_out[domain], 0.0
        for begin in range(0, len(text), ROUTE_BATCH):
            batch = text[begin : begin + ROUTE_BATCH]
            recorded, loss = model.route(parameters, shape, batch)
            for name, values in parts.items():
                values.append(recorded[name])
            step += [step[-1] + 1 if step else 0] * batch.size
            total += loss * len(batch)
        losses[domain] = total / len(text)
    tokens, per_domain = len(step), len(corpus.held_out[DOMAINS[0]])
    trace = Trace(
        expert_ids=np.concatenate(parts["experts"]).astype(np.int16),
        gate_weights=np.concatenate(parts["weights"]),
        scores=np.concatenate(parts["logits"]) if scores else None,
        step=np.array(step, np.int64), rank=np.zeros(tokens, np.int64), phase=np.zeros(tokens, np.uint8),
        seq=np.arange(tokens) // shape.length, pos=np.arange(tokens) % shape.length,
        n_experts=shape.n_experts, domain={i: DOMAINS[i // per_domain] for i in range(len(DOMAINS) * per_domain)},
    )
    return trace, losses


def _model_meta(shape: Any, scores: bool) -> dict[str, Any]:
    meta = {
        "model": "clustersim tiny", "hidden_size": shape.hidden, "expert_ffn": shape.ffn, "num_shared_experts": 0,
        "router": "softmax-after-topk", "weights_renormalized": True, "slot_order": "descending",
        "source": "clustersim capture tiny", "license": "Apache-2.0",
    }
    return meta | ({"scores": "router logits, before the softmax"} if scores else {})
