"""Records the routers of any PyTorch model while it runs, in whatever loop: hooks in, a trace out. Changes nothing in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clustersim.capture.routers import Chosen, Site, find_routers, named_routers, read_choice
from clustersim.types import InputError, Trace
from clustersim.workload.trace import joined
from clustersim.workload.trace_rules import PHASE_CODES
from clustersim.workload.trace_writing import TraceWriter


class Recording:
    """What was recorded so far, one part per forward pass of the model."""

    def __init__(self, model: nn.Module, sites: Sequence[Site], *, scores: bool, meta: Mapping[str, Any]) -> None:
        self.sites = list(sites)
        self.parts: list[Trace] = []
        self.domain: dict[int, str] = {}
        self.next_domain = ""                   # of the sequences of the passes that come
        self.step = 0
        self.meta = {"model": type(model).__name__, "source": "clustersim record", "slot_order": "as the router returns them",
                     "routers": [site.name for site in sites], **meta}
        self._model, self._scores = model, scores
        self._found: dict[str, Chosen] | None = None
        self._inputs: dict[str, Any] = {}
        self._sequences: np.ndarray[Any, np.dtype[np.int64]] = np.zeros(0, np.int64)
        self._next = self._past = 0

    def trace(self) -> Trace:
        """All that was recorded.

        Raises:
            InputError: nothing was.
        """
        if not self.parts:
            raise InputError("record: nothing was recorded; the model must be called inside the with block")
        whole = joined(_alike(self.parts), self.domain)
        return Trace(**{name: getattr(whole, name) for name in Trace.__dataclass_fields__ if name != "meta"}, meta=self.meta)

    def save(self, path: str | Path) -> None:
        """Write what was recorded as `moetrace/1` into the folder `path`.

        Raises:
            InputError: nothing was recorded.
        """
        trace = self.trace()
        with TraceWriter(path) as writer:
            writer.add(trace)

    # ---- hooks

    def before(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """The model begins a forward pass."""
        self._found = {}
        self._inputs = dict(keywords)
        self._past = 0
        with suppress(AttributeError, TypeError):           # as it is before the pass adds to it
            self._past = int(keywords["past_key_values"].get_seq_length()) if keywords.get("past_key_values") is not None else 0
        first = arguments[0] if arguments else None
        if isinstance(first, Tensor) and not first.is_floating_point():
            self._inputs.setdefault("input_ids", first)

    def at(self, site: Site, output: Any) -> None:
        """A router has chosen. Outside of a forward pass (checkpointed blocks that run again) nothing is recorded."""
        if self._found is not None and site.name not in self._found:
            self._found[site.name] = read_choice(site, output)

    def after(self, module: nn.Module, arguments: Any, output: Any) -> None:
        """The forward pass is over: what the routers chose goes to the CPU, once."""
        found, self._found = self._found, None
        if not found:
            return
        for stack in dict.fromkeys(site.stack for site in self.sites):
            chosen = [(i, found[site.name]) for i, site in enumerate(self.sites) if site.stack == stack and site.name in found]
            if chosen:
                self.parts.append(self._part(stack, chosen))
                self.step += 1

    def _part(self, stack: str, chosen: list[tuple[int, Chosen]]) -> Trace:
        tokens = {one.ids.shape[0] for _, one in chosen}
        if len(tokens) > 1:
            raise InputError(f"record: routers of {stack!r} saw {sorted(tokens)} tokens in one pass; they must see the same")
        n, layers = tokens.pop(), len(self.sites)
        k = max(one.ids.shape[1] for _, one in chosen)
        experts = max(one.n_experts for _, one in chosen)
        ids = np.full((n, layers, k), -1, np.int16)
        weights = np.zeros((n, layers, k), np.float32) if all(one.weights is not None for _, one in chosen) else None
        scores = None
        if self._scores:
            if any(one.logits is None for _, one in chosen):
                raise InputError(f"record: scores=True: routers of {stack!r} return no logits")
            scores = np.zeros((n, layers, experts), np.float32)
        for layer, one in chosen:
            width = one.ids.shape[1]
            ids[:, layer, :width] = one.ids.to(torch.int16).cpu().numpy()
            if weights is not None and one.weights is not None:
                weights[:, layer, :width] = one.weights.float().cpu().numpy()
            if scores is not None and one.logits is not None:
                scores[:, layer] = one.logits.float().cpu().numpy()
        columns, keep = self._places(n, stack)
        parts = {name: values[keep] for name, values in columns.items()}
        return Trace(
            expert_ids=ids[keep], gate_weights=None if weights is None else weights[keep], n_experts=experts,
            scores=None if scores is None else scores[keep], step=np.full(int(keep.sum()), self.step), meta=self.meta,
            rank=np.zeros(int(keep.sum()), np.int64), **parts,
        )  # fmt: skip

    def _places(self, n: int, stack: str) -> tuple[dict[str, Any], np.ndarray[Any, np.dtype[np.bool_]]]:
        """Sequence, position, phase and word of every row, and whether it is a token and no padding."""
        encoder = "encoder" in stack
        words = self._array("decoder_input_ids" if "decoder" in stack and "decoder_input_ids" in self._inputs else "input_ids")
        words = words if words is not None and words.size == n else None
        batch = len(words) if words is not None and words.ndim == 2 else 1
        length = n // batch
        past = self._past
        if past == 0 or self._sequences.size != batch:
            self._sequences = self._next + np.arange(batch)
            self._next += batch
            self.domain |= dict.fromkeys(self._sequences.tolist(), self.next_domain) if self.next_domain else {}
        mask = self._array("decoder_attention_mask" if "decoder" in stack else "attention_mask")
        if mask is None or mask.ndim != 2 or len(mask) != batch or mask.shape[1] < length:
            mask = np.ones((batch, past + length), np.int64)
        real = mask[:, -length:] > 0
        pos = np.maximum(np.cumsum(mask > 0, 1)[:, -length:] - 1, 0)
        phase = "encode" if encoder else "train" if self._model.training else "decode" if past else "prefill"
        columns = {
            "seq": np.repeat(self._sequences, length), "pos": pos.ravel(), "phase": np.full(n, PHASE_CODES[phase], np.uint8),
            "token_id": words.ravel().astype(np.int64) if words is not None else np.full(n, -1),
        }
        return columns, real.ravel()

    def _array(self, name: str) -> Any:
        value = self._inputs.get(name)
        return value.detach().cpu().numpy() if isinstance(value, Tensor) and value.dim() <= 2 else None


@contextmanager
def record(
    model: nn.Module, *, scores: bool = False, routers: Sequence[str] | None = None, meta: Mapping[str, Any] | None = None
) -> Iterator[Recording]:
    """Record what the routers of `model` choose while the block runs: `with record(model) as r: model(...)`, `r.trace()`.

    Ids are those that the router returned; nothing is computed anew. One pass of the model is one step. Rows are tokens by
    sequence and position as `input_ids`, `attention_mask` and `past_key_values` of the call tell them; padding is left out.
    Encoder and decoder tokens are rows of their own. Gradients and outputs stay as they are; hooks do not fire in CUDA graphs.

    Args:
        scores: keep the router's logits too.
        routers: names of the router modules, where they are not found by the names of their classes.
        meta: more for the metadata of the trace.

    Raises:
        InputError: no router, or one whose output holds no choice in a known form.
    """
    sites = named_routers(model, list(routers)) if routers is not None else find_routers(model)
    recording = Recording(model, sites, scores=scores, meta=meta or {})
    handles = [model.register_forward_pre_hook(recording.before, with_kwargs=True), model.register_forward_hook(recording.after)]
    for site in sites:
        handles.append(site.module.register_forward_hook(_hook(recording, site)))
    try:
        yield recording
    finally:
        for handle in handles:
            handle.remove()


def _hook(recording: Recording, site: Site) -> Any:
    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        recording.at(site, output)

    return hook


def _alike(parts: list[Trace]) -> list[Trace]:
    """The parts with as many slots each, the most that any has; layers that no part names are told by -1."""
    from dataclasses import replace

    k, experts = max(part.top_k for part in parts), max(part.n_experts for part in parts)
    weighed = all(part.gate_weights is not None for part in parts)
    alike = []
    for part in parts:
        wider = ((0, 0), (0, 0), (0, k - part.top_k))
        alike.append(replace(
            part, expert_ids=np.pad(part.expert_ids, wider, constant_values=-1), n_experts=experts,
            gate_weights=np.pad(part.gate_weights, wider) if weighed and part.gate_weights is not None else None,
            scores=None if part.scores is None else np.pad(part.scores, ((0, 0), (0, 0), (0, experts - part.n_experts))),
        ))  # fmt: skip
    return alike
