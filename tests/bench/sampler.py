"""How fast the sampler draws: `python -m tests.bench.sampler`, CPU seconds of one core, compiled, best of several."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from clustersim.workload.sampler import Batch
from clustersim.workload.sampler_parameters import changed, load_parameters
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


if __name__ == "__main__":
    main()
