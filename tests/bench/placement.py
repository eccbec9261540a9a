"""Layer time of every placement over EPLB's on a recorded load: `python -m tests.bench.placement TRACE MODEL DEAL [LAYERS]`.

Nodes of 4 (EP8) and 8 GPUs (EP16, EP32) of h100_sxm, slots per GPU the fewest and one and two more, `nearest` replicas, exact
network. Decided and played (a) on alternate sequences of every domain, (b) on one domain and then the next. DEAL is `blocks`
(one step per domain, each GPU a block of it) or `batched` (64 sequences per GPU, each a token per step; two steps per domain).
LAYERS is how many of the trace's MoE layers are played, from the first on; all of them where it is not given.
"""

from __future__ import annotations

import sys
from collections import defaultdict

import numpy as np

import clustersim as cs
from clustersim.config import compose
from clustersim.types import InputError
from clustersim.workload.trace import read_trace

METHODS = (
    "contiguous", "eplb", "eplb_hierarchical", "sglang_vec", "lpt", "topology_greedy", "coactivation", "source_aware", "islands",
    "annealing", "local_search",
)  # fmt: skip
MACHINES = {8: ["topology.nodes=2", "topology.gpus_per_node=4"], 16: ["topology.nodes=2"], 32: ["topology.nodes=4"]}
MOVES = 4000            # of a search, per layer


def overrides(trace: str, model: str, deal: str, gpus: int, spare: int, split: str, tokens: dict[str, int]) -> list[str]:
    """The run of one cell of the table, without its placement."""
    lasts = 2 if deal == "batched" else 1
    keys = [
        f"model={model}", "trace=file", f"trace.path={trace}", *MACHINES[gpus], f"workload.deal={deal}",
        "placement.replica=nearest", f"placement.spare={spare}", f"workload.domain_steps={lasts}",
        f"workload.steps={lasts * tokens['domains']}",
        f"workload.tokens_per_gpu={64 if deal == 'batched' else tokens[split] // gpus}",
    ]  # fmt: skip
    if split == "a":
        return [*keys, "decide.apart=true"]
    once = ["decide.migration=free", *(f"decide.{key}={lasts}" for key in ("window", "period", "warmup"))]
    return [*keys, "decide=periodic", *once]


def smallest_domain(trace: str) -> dict[str, int]:
    """Tokens of the smallest domain, whole (b) and of the smaller half of its alternate sequences (a), and how many there are."""
    recorded = read_trace(trace)
    names = np.array([recorded.domain.get(int(seq), "") for seq in recorded.seq])
    least = {"a": recorded.n_tokens, "b": recorded.n_tokens, "domains": len(set(names))}
    for name in set(names):
        sequences, lengths = np.unique(recorded.seq[names == name], return_counts=True)
        order = np.argsort([np.flatnonzero(recorded.seq == seq)[0] for seq in sequences])
        halves = [int(lengths[order][half::2].sum()) for half in (0, 1)]
        least = {**least, "a": min(least["a"], *halves), "b": min(least["b"], sum(halves))}
    return least


def table(trace: str, model: str, deal: str, layers: str | None = None) -> str:
    """Mean layer time over EPLB's, by method, split and number of GPUs; the last column is the mean of all cells."""
    tokens = smallest_domain(trace)
    ratio: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for split in "ab":
        for gpus in MACHINES:
            for spare in (0, 1, 2):
                cell = overrides(trace, model, deal, gpus, spare, split, tokens)
                if layers is not None:
                    cell.append(f"model.n_layers={compose([f'model={model}']).model.n_dense_layers + int(layers)}")
                seconds = {}
                for method in METHODS:
                    moves = [f"placement.moves={MOVES}"] if method in ("local_search", "annealing") else []
                    result = cs.simulate([*cell, f"placement={method}", *moves])
                    seconds[method] = result.summary["moe_layer_s"]
                for method, took in seconds.items():
                    ratio[method, split, gpus].append(took / seconds["eplb"])
                said = " ".join(f"{method}={took * 1e6:.1f}" for method, took in seconds.items())
                reuse = next((note for note in result.notes if "dealt again" in note), "no token is used twice")
                print(f"{split} EP{gpus} spare {spare}: us per layer: {said}; {reuse}", file=sys.stderr, flush=True)
    cells = [(split, gpus) for split in "ab" for gpus in MACHINES]
    lines = [f"{'method':<18}" + "".join(f"{split} EP{gpus:<5}" for split, gpus in cells) + "mean"]
    for method in METHODS:
        means = [float(np.mean(ratio[method, *cell])) for cell in cells]
        lines.append(f"{method:<18}" + "".join(f"{mean:<8.3f}" for mean in means) + f"{np.mean(means):.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5) or sys.argv[3] not in ("blocks", "batched"):
        sys.exit("usage: python -m tests.bench.placement TRACE MODEL blocks|batched [LAYERS]")
    try:
        print(table(*sys.argv[1:]))
    except InputError as error:
        sys.exit(str(error))
