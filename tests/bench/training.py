"""What a training step of many GPUs costs: `python -m tests.bench.training [CASE ...]` prints each beside what is demanded.

CPU seconds of one core, compiled and warm, from the overrides to the tables. On a busy machine they are up to twice those of a
quiet one; solves of the network and events of the loop are the same on every machine. What is routed and counted how often is in
tests/unit/test_training_work.py.
"""

from __future__ import annotations

import os
import sys
import time

import clustersim as cs
from tests.bench.rows import at_most

V3 = ["+experiment=training", "network=fluid"]
DENSE = [
    "workload=training", "model=llama_3_1_405b", "topology=h100_sxm", "topology.nodes=2048", "workload.sequence=8192",
    "workload.global_batch=2048", "parallel.tensor=8", "parallel.pipeline=16", "parallel.order=interleaved", "parallel.virtual=8",
    "parallel.zero=2",
]  # fmt: skip
CASES = {       # overrides, CPU seconds at most
    "exact": ([*V3], 60.0),
    "1 %": ([*V3, "network.resolution=0.01"], 60.0),
    "bound": (["+experiment=training"], 60.0),
    "dense": (DENSE, 60.0),
}
# as much as compiles everything
SMALL = ["topology.nodes=16", "parallel.pipeline=2", "model.n_layers=4", "workload.global_batch=256", "memory=ignore"]


def main() -> None:
    print(f"{'case':<8}{'CPU s':>7}{'must':>8}{'':>5}{'GPUs':>8}{'solves':>12}{'events':>10}")
    for name in sys.argv[1:] or CASES:
        overrides, must = CASES[name]
        if overrides is not DENSE:
            cs.simulate([*overrides, *SMALL])
        began = time.process_time()
        result = cs.simulate(overrides)
        line = at_most(name, "CPU s", time.process_time() - began, must)
        gpus, solves, events = (int(result.summary[what]) for what in ("gpus", "solves", "events"))
        said = "yes" if line.holds else "NO"
        print(f"{name:<8}{line.measured:>7}{line.must:>8}{said:>5}{gpus:>8,}{solves:>12,}{events:>10,}", flush=True)
    print(f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
