"""How fast capacity policies decide, on one core and warm: `python -m tests.bench.capacity`."""

from __future__ import annotations

import time

import numpy as np

from clustersim.types import Choices
from clustersim.workload.capacity import limit
from clustersim.workload.capacity_policies import __all__ as policies
from tests.contests import rule

GPUS, TOKENS, EXPERTS, TOP_K = 32, 4096, 256, 8


def seconds(policy: str, repeats: int = 4) -> tuple[float, float]:
    """CPU seconds, best of some, and the share dropped at factor 1 of experts of unequal popularity."""
    rng = np.random.default_rng(0)
    scores = (rng.gumbel(size=(GPUS * TOKENS, EXPERTS)) + rng.normal(0, 0.5, EXPERTS)).astype(np.float32)
    ids = np.ascontiguousarray(np.argpartition(-scores, TOP_K, axis=1)[:, :TOP_K])
    choices = Choices(ids=ids, weights=rng.random(ids.shape), scores=lambda first, last: scores[first:last])
    what = rule(factor=1.0, drop=policy)
    source, index = np.repeat(np.arange(GPUS), TOKENS), np.tile(np.arange(TOKENS), GPUS)
    best, dropped = np.inf, 0.0
    for _ in range(1 + repeats):            # the first one compiles
        began = time.process_time()
        done = limit(rng, what, choices, source=source, index=index, n_gpus=GPUS, n_experts=EXPERTS, top_k=TOP_K)
        best, dropped = min(best, time.process_time() - began), float((done.assigned < 0).mean())
    return best, dropped


if __name__ == "__main__":
    print(f"{GPUS * TOKENS:,} tokens, top-{TOP_K} of {EXPERTS} experts, factor 1")
    for name in sorted(policies):
        took, lost = seconds(name)
        print(f"{name:<22}{GPUS * TOKENS * TOP_K / took / 1e6:7.1f} M assignments/s   {100 * lost:5.2f} % dropped")
