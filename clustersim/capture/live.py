"""A real model that routes while the simulator plays: it stops at every router until the capacity rule has decided.

The model runs in a thread of its own. What a layer dropped adds nothing to its tokens, so that later layers, and the loss, are
those of a model that was run with this capacity (a closed loop); in an open loop it is only told that all was kept.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.model import Model
from clustersim.types import Choices, InputError, Ints, Workload
from clustersim.workload.source import uniform_blocks

LOOPS = ("closed", "open")
Keep = NDArray[np.bool_]
Limit = Callable[[int, NDArray[Any], "NDArray[Any] | None"], "Keep | None"]       # (layer, ids, weights) -> kept
Pass = Callable[[int, Limit], float]                                            # (block of tokens, limit) -> loss per token


class _Stopped(BaseException):
    """The pass is not wanted any more."""


class Live:
    """Passes of a model that wait in every layer. Layers beyond the model's are those of a further pass, over other tokens."""

    def __init__(self, run: Pass, layers: int, *, closed: bool) -> None:
        self._run, self._layers, self._closed = run, layers, closed
        self._thread: threading.Thread | None = None
        self._at = -1                           # layer that waits for an answer, over all blocks; -1 none
        self._told: tuple[NDArray[Any], NDArray[Any] | None] = (np.zeros((0, 1)), None)
        self._losses: dict[int, float] = {}

    def choose(self, layer: int) -> Choices:
        """The choices of a layer: the model runs up to it, and waits there."""
        if layer != self._at:
            block, wanted = divmod(layer, self._layers)
            on_the_way = self._thread is not None and 0 <= self._at < layer and self._at // self._layers == block
            if not on_the_way:
                self._begin(block)
            while self._at < layer:
                if self._at >= block * self._layers:
                    self._answers.put(None)
                self._next()
            assert self._at % self._layers == wanted
        ids, weights = self._told
        return Choices(ids=ids.astype(np.int64), weights=None if weights is None else weights.astype(np.float64))

    def kept(self, layer: int, assigned: Ints) -> None:
        """What the capacity rule left of the layer that waits; the model goes on."""
        if layer != self._at:
            return
        ids, _ = self._told
        if ((assigned >= 0) & (assigned != ids)).any():
            raise InputError("trace=live: a choice went to another expert, which no model here can; use capacity.drop=position")
        self._answers.put((assigned >= 0) | (ids < 0) if self._closed else None)
        if (layer + 1) % self._layers == 0:
            self._finish(layer // self._layers)
        else:
            self._next()

    def measure(self) -> Mapping[str, float]:
        """Loss per token in nats, mean over the passes that were played to the end."""
        return {"live_loss": float(np.mean(list(self._losses.values())))} if self._losses else {}

    def _begin(self, block: int) -> None:
        self._stop()
        self._asked: queue.Queue[Any] = queue.Queue(1)
        self._answers: queue.Queue[Any] = queue.Queue(1)
        self._at = block * self._layers - 1
        asked, answers = self._asked, self._answers

        def limit(layer: int, ids: NDArray[Any], weights: NDArray[Any] | None) -> Keep | None:
            asked.put((ids, weights))
            answer = answers.get()
            if answer is _Stopped:
                raise _Stopped
            keep: Keep | None = answer
            return keep

        def work() -> None:
            try:
                asked.put(self._run(block, limit))
            except _Stopped:
                pass
            except BaseException as error:      # told to whoever waits
                asked.put(error)

        self._thread = threading.Thread(target=work, daemon=True, name="live model")
        self._thread.start()

    def _next(self) -> None:
        """Wait until the model has chosen in the next layer."""
        found = self._asked.get()
        if isinstance(found, BaseException):
            self._thread = None
            raise found
        self._told = found
        self._at += 1

    def _finish(self, block: int) -> None:
        found = self._asked.get()
        self._thread, self._at = None, -1
        if isinstance(found, BaseException):
            raise found
        self._losses[block] = float(found)

    def _stop(self) -> None:
        if self._thread is not None:
            self._answers.put(_Stopped)
            self._thread.join()
        self._thread = None


def small_model(
    model: Model, n_gpus: int, tokens_per_gpu: int, seed: int, *, loop: str = "closed", sequence: int = 128, steps: int = 250,
    network: str | None = None, text: str | None = None,
) -> Workload:
    """The small model of `capture tiny`, trained here when it is not kept from before, on text that it has not seen.

    Args:
        loop: closed, or open: what is dropped is counted and changes nothing.
        sequence: tokens per sequence; it must divide tokens_per_gpu.
        steps: training steps.
        network, text: of `hf_model`; not used here.

    Raises:
        InputError: torch is missing, another number of experts or top_k than the model's, a sequence that does not fit.
    """
    torch = _torch()
    from clustersim.capture import model as small

    if network is not None or text is not None:
        raise InputError("trace.network, trace.text: are for trace.source=clustersim.capture.live:hf_model")
    parameters, shape, words = _trained(seed=0, steps=steps, length=128)
    _check(model, shape.n_experts, shape.top_k, tokens_per_gpu, sequence, loop, longest=shape.length)
    pieces = words[:, :sequence]
    per_pass = n_gpus * tokens_per_gpu // sequence

    def run(block: int, limit: Limit) -> float:
        rows = (np.arange(per_pass) + block * per_pass + seed) % len(pieces)

        def at(layer: int, routed: Any) -> Any:
            keep = limit(layer, routed.experts.numpy(), routed.weights.numpy())
            return routed if keep is None else replace(routed, weights=routed.weights * torch.from_numpy(keep))

        total, threads = 0.0, torch.get_num_threads()
        torch.set_num_threads(1)                    # products this small gain nothing from a second core, and lose on a busy one
        with torch.no_grad():
            ids = torch.from_numpy(pieces[rows])
            logits, _ = small.forward(parameters, shape, ids, at)
            for i in range(0, per_pass, 64):        # logits are large: a few sequences at a time
                part = logits[i : i + 64, :-1].flatten(0, 1)
                loss = torch.nn.functional.cross_entropy(part, ids[i : i + 64, 1:].flatten(), reduction="sum")
                total += float(loss)
        torch.set_num_threads(threads)
        return total / (per_pass * (sequence - 1))

    return _workload(Live(run, shape.n_layers, closed=loop == "closed"), shape.n_layers, model, n_gpus, tokens_per_gpu, sequence)


def hf_model(
    model: Model, n_gpus: int, tokens_per_gpu: int, seed: int, *, loop: str = "closed", sequence: int = 128, steps: int = 0,
    network: str | None = None, text: str | None = None,
) -> Workload:
    """Any Hugging Face model whose router returns weights, on a text of the user's.

    Args:
        network: name or folder that transformers can load.
        text: a file; read from its beginning, again where it is too short.
        loop, sequence, steps: as `small_model`; steps is not used.

    Raises:
        InputError: as `small_model`, and where model or text cannot be read.
    """
    torch = _torch()
    from clustersim.capture.huggingface import _model, _text, _tokenizer

    if network is None or text is None:
        raise InputError("trace.network, trace.text: trace.source=clustersim.capture.live:hf_model needs both")
    loaded, _, _ = _model(torch, network, "cpu", "auto")
    words = _tokenizer(None, network, loaded)(_text(Path(text)))
    if not words.size:
        raise InputError(f"trace.text={text}: holds no tokens")
    return from_network(loaded, words, model, n_gpus, tokens_per_gpu, loop=loop, sequence=sequence)


def from_network(
    network: Any, words: NDArray[np.int64], model: Model, n_gpus: int, tokens_per_gpu: int, *, loop: str = "closed",
    sequence: int = 128,
) -> Workload:
    """A PyTorch model that takes `input_ids` and `labels` and gives `loss`, live on `words`.

    Raises:
        InputError: no router, another number of experts or top_k than the model's, a sequence that does not fit.
    """
    import torch

    from clustersim.capture.routers import find_routers, read_choice, without

    sites = find_routers(network)
    per_pass = n_gpus * tokens_per_gpu // max(sequence, 1)
    found: dict[str, int] = {}

    def run(block: int, limit: Limit) -> float:
        at = (np.arange(per_pass * sequence) + block * per_pass * sequence) % words.size
        ids = torch.from_numpy(words[at].reshape(per_pass, sequence)).to(next(network.parameters()).device)

        def hook(layer: int) -> Any:
            def routed(module: Any, arguments: Any, output: Any) -> Any:
                chosen = read_choice(sites[layer], output)
                found.update(experts=chosen.n_experts, top_k=chosen.ids.shape[1])
                weights = None if chosen.weights is None else chosen.weights.float().cpu().numpy()
                keep = limit(layer, chosen.ids.cpu().numpy(), weights)
                if keep is None or keep.all():
                    return None
                return without(output, sites[layer], torch.from_numpy(keep).to(chosen.ids.device))

            return routed

        handles = [site.module.register_forward_hook(hook(layer)) for layer, site in enumerate(sites)]
        try:
            with torch.no_grad():
                return float(network(input_ids=ids, labels=ids).loss)
        finally:
            for handle in handles:
                handle.remove()

    live = Live(run, len(sites), closed=loop == "closed")
    live.choose(0)
    _check(model, found["experts"], found["top_k"], tokens_per_gpu, sequence, loop, longest=None)
    return _workload(live, len(sites), model, n_gpus, tokens_per_gpu, sequence)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise InputError("trace=live needs PyTorch, which is not installed: pip install 'clustersim[capture]'") from error
    return torch


def _check(
    model: Model, experts: int, top_k: int, tokens_per_gpu: int, sequence: int, loop: str, *, longest: int | None
) -> None:
    if loop not in LOOPS:
        raise InputError(f"trace.loop={loop}: must be closed or open")
    if (experts, top_k) != (model.n_experts, model.top_k):
        raise InputError(
            f"trace=live: {experts} experts, top-{top_k}; model {model.name} has {model.n_experts} experts, top-{model.top_k}"
        )
    if sequence < 2 or tokens_per_gpu % sequence or (longest is not None and sequence > longest):
        most = f", and at most {longest}" if longest is not None else ""
        raise InputError(f"trace.sequence={sequence}: must divide workload.tokens_per_gpu={tokens_per_gpu}{most}")


def _workload(live: Live, layers: int, model: Model, n_gpus: int, tokens_per_gpu: int, sequence: int) -> Workload:
    source, index, context = uniform_blocks(n_gpus, tokens_per_gpu, sequence)
    notes: tuple[str, ...] = ()
    if layers < model.n_moe_layers:
        notes = (f"the live model's {layers} layers run again, over other text, to fill the {model.n_moe_layers} MoE layers",)
    return Workload(
        source=source, index=index, context=context, choose=live.choose, kept=live.kept, measure=live.measure, notes=notes
    )


def _trained(*, seed: int, steps: int, length: int) -> tuple[dict[str, Any], Any, NDArray[np.int64]]:
    """(parameters, shape, held-out sequences [n, length]) of the tiny model, from a file of an earlier run where there is one."""
    from clustersim.capture import model as small
    from clustersim.capture.text import DOMAINS, load_corpus
    from clustersim.capture.tiny import BALANCE, TRAIN_BATCH, _batches, _repeatable

    if steps < 1:
        raise InputError(f"trace.steps={steps}: must be a whole number from 1 up")
    torch = _torch()
    kept = _kept_file(f"{seed} {steps} {length} {torch.__version__}")
    if kept is not None and kept.is_file():
        try:
            with np.load(kept, allow_pickle=False) as found:
                shape = small.Shape(vocabulary=int(found["vocabulary"]), length=length)
                return {k[2:]: torch.from_numpy(found[k]) for k in found.files if k.startswith("p/")}, shape, found["words"]
        except (OSError, ValueError, KeyError):
            kept.unlink(missing_ok=True)            # not whole: made anew
    wanted = max(20_000, int(1.2 * steps * TRAIN_BATCH * length / len(DOMAINS)))
    corpus = load_corpus(seed=seed, sequences=96, length=length, train_tokens=wanted)
    shape = small.Shape(vocabulary=len(corpus.vocabulary), length=length)
    with _repeatable(torch, torch.device("cpu")):
        parameters = small.initial_parameters(shape, torch.device("cpu"), seed)
        small.train(parameters, shape, _batches(corpus, seed, length), steps=steps, balance=BALANCE)
    plain = {name: value.detach() for name, value in parameters.items()}
    words = np.concatenate([corpus.held_out[domain] for domain in DOMAINS])
    if kept is not None:
        arrays = {f"p/{name}": value.numpy() for name, value in plain.items()}
        _keep(kept, arrays | {"words": words, "vocabulary": shape.vocabulary})
    return plain, shape, words


def _kept_file(what: str) -> Path | None:
    """Where the trained model is kept: a folder for caches; None where it cannot be written."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clustersim"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder / f"live-{hashlib.sha256(what.encode()).hexdigest()[:12]}.npz"


def _keep(file: Path, arrays: dict[str, Any]) -> None:
    from clustersim.writing import replacing

    try:
        with replacing(file) as partial, partial.open("wb") as stream:
            np.savez(stream, **arrays)
    except OSError:
        return
