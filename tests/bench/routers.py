"""How fast routers choose, and what streaming their scores takes: `python -m tests.bench.routers [LAYERS]` prints both.

CPU seconds of one core, compiled, best of several, on 256 experts. LAYERS (58 takes minutes, 2 unless given): of 4,096 tokens
on each of 256 GPUs, scores drawn and routed as DeepSeek-V3 routes them, with the largest memory that took.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from clustersim.config import compose
from clustersim.workload import routers
from clustersim.workload.routing import rerouted, router_from
from clustersim.workload.source import from_sampler

TOKENS, FEW, EXPERTS = 65_536, 8192, 256


def speed(tokens: int, run: Callable[[], object]) -> float:
    """Tokens per CPU second, the best of several runs after one that compiles."""
    run()
    best = np.inf
    for _ in range(7):
        began = time.process_time()
        run()
        best = min(best, time.process_time() - began)
    return tokens / best


def cases() -> Iterator[tuple[str, float]]:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((TOKENS, EXPERTS), np.float32)
    sigmoid = 1 / (1 + np.exp(-scores))
    bias = 0.01 * rng.standard_normal(EXPERTS)
    yield "group_limited top-8 of 4 of 8 groups, bias, on activated scores", speed(
        TOKENS, lambda: routers.group_limited(sigmoid, k=8, score="none", bias=bias))
    yield "the same, sigmoid included", speed(TOKENS, lambda: routers.group_limited(scores, k=8, bias=bias))
    yield "the same without a bias", speed(TOKENS, lambda: routers.group_limited(scores, k=8))
    yield "top_k, softmax after", speed(TOKENS, lambda: routers.top_k(scores, k=8))
    yield "top_k, softmax before", speed(TOKENS, lambda: routers.top_k(scores, k=8, softmax="before"))
    few = scores[:FEW]
    workload = from_sampler(compose(["model=deepseek_v3"]).model, 2, FEW // 2, 0)
    assert workload.scores is not None
    for name, run in {
        "top_p": lambda: routers.top_p(few),
        "expert_choice": lambda: routers.expert_choice(few, k=8),
        "sinkhorn": lambda: routers.sinkhorn(few, k=8),
        "quantile_balanced": lambda: routers.quantile_balanced(few, k=8),
        "base, exact": lambda: routers.base(few),
        "hash_table": lambda: routers.hash_table(few, k=8, token_ids=np.arange(FEW)),
        "random": lambda: routers.random(few, k=8, rng=rng),
        "scores of the sampler": lambda: workload.scores(0, 0, FEW),
    }.items():
        yield name, speed(FEW, run)


def stream(layers: int) -> tuple[float, float]:
    """CPU seconds and GiB at the most, for so many layers of 256 GPUs."""
    run = compose(["model=deepseek_v3", "trace=sampled", "router=model"])
    workload = from_sampler(run.model, 256, 4096, 0)
    router = router_from("model", {}, run.model)
    workload = rerouted(workload, router, run.model, 0, name="trace=sampled", near=lambda gpu: np.ones(EXPERTS, bool))
    began = time.process_time()
    for layer in range(layers):
        workload.choose(layer)
    return time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    layers = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    seconds, memory = stream(layers)                # first: the peak is that of the process
    table = Table(box=None, header_style="bold")
    table.add_column("router")
    table.add_column("M tokens/s", justify="right")
    for name, rate in cases():
        table.add_row(name, f"{rate / 1e6:.2f}")
    console = Console()
    console.print(table)
    console.print(f"{layers} layers of 4,096 tokens x 256 GPUs, drawn and routed: {seconds:.0f} s, at most {memory:.2f} GiB")


if __name__ == "__main__":
    main()
