"""How fast the sampler draws, and what its presets look like: `python -m tests.bench.sampler`.

Speeds in CPU seconds of one core, compiled, best of several. Presets: 256 sequences of 128 tokens, 6 layers, 6 of 64 experts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from clustersim.types import Trace
from clustersim.workload import statistics
from clustersim.workload.sampler import Batch
from clustersim.workload.sampler_parameters import changed, load_parameters, preset_names
from clustersim.workload.sampler_process import Process

GPUS, TOKENS_PER_GPU, SEQUENCE = 64, 1024, 128
SHAPES = ((256, 8), (64, 6), (32, 4))


def speed(work: float, run: Callable[[], object]) -> float:
    """Work per CPU second, the best of several runs after one that compiles and settles the layer."""
    run()
    best = 0.0
    for _ in range(7):
        began = time.process_time()
        run()
        best = max(best, work / (time.process_time() - began))
    return best


def batch(experts: int, top_k: int, **keys: object) -> Batch:
    process = Process(changed(load_parameters("moderate"), keys), n_layers=58, n_experts=experts, top_k=top_k, seed=0)
    return Batch(process=process, n_gpus=GPUS, tokens_per_gpu=TOKENS_PER_GPU, sequence=SEQUENCE)


def cases() -> Iterator[tuple[str, float, float, float, float]]:
    """(experts and top-k, correlated, independent in assignments, scores, seconds to settle one layer)."""
    tokens = GPUS * TOKENS_PER_GPU
    for experts, top_k in SHAPES:
        correlated, independent = batch(experts, top_k), batch(experts, top_k, tokens="independent")
        chosen = speed(tokens, lambda b=correlated: b.choose(1))
        alias = speed(tokens * top_k, lambda b=independent: b.choose(1))
        scores = speed(tokens, lambda b=correlated: b.scores(1, 0, tokens))
        settled = 1 / speed(1, lambda b=correlated: b.process._make_layer(1))
        yield f"{top_k} of {experts}", chosen, alias, scores, settled


def preset(name: str) -> list[float]:
    """Load CV, max/mean, overlap at 1 and 16, chance, recall of the next layer; means over the layers."""
    process = Process(load_parameters(name), n_layers=6, n_experts=64, top_k=6, seed=0)
    drawn = Batch(process=process, n_gpus=256, tokens_per_gpu=128, sequence=128)
    ids = np.stack([drawn.choose(layer)[0] for layer in range(6)], axis=1).astype(np.int16)
    zeros = np.zeros(len(ids), np.int64)
    trace = Trace(
        expert_ids=ids, gate_weights=None, step=zeros, rank=zeros, seq=np.repeat(np.arange(256), 128),
        pos=np.tile(np.arange(128), 256), phase=zeros.astype(np.uint8), n_experts=64,
    )
    load = statistics.membership(ids, 64).sum(0)
    found = (
        statistics.load_cv(ids, 64), load.max(1) / load.mean(1), statistics.overlap(trace, 1), statistics.overlap(trace, 16),
        statistics.chance_overlap(trace), statistics.next_layer_recall(trace)[0],
    )  # fmt: skip
    return [float(one.mean()) for one in found]


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    table.add_column("experts")
    for heading in ("correlated, M token-layers/s", "independent, M assignments/s", "scores, M tokens/s", "settling, ms"):
        table.add_column(heading, justify="right")
    for name, chosen, alias, scores, settled in cases():
        table.add_row(name, f"{chosen / 1e6:.2f}", f"{alias / 1e6:.1f}", f"{scores / 1e6:.2f}", f"{settled * 1e3:.1f}")
    Console().print(table)
    table = Table(box=None, header_style="bold")
    for heading in ("preset", "load CV", "max/mean", "overlap 1", "overlap 16", "chance", "recall"):
        table.add_column(heading)
    for name in preset_names():
        table.add_row(name, *(f"{value:.2f}" for value in preset(name)))
    Console().print(table)


if __name__ == "__main__":
    main()
