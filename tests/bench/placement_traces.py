"""Layer time of every placement on a recorded load, cell by cell; `tests.bench.placement` says what of and shows it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import clustersim as cs
from clustersim.config import compose
from clustersim.identity import PHYSICS
from clustersim.workload.trace import read_trace

METHODS = (
    "contiguous", "round_robin", "random", "eplb", "eplb_hierarchical", "eplb_vllm", "sglang_vec", "lpt", "topology_greedy",
    "coactivation", "next_layer", "source_aware", "islands", "shadow", "annealing", "local_search",
)  # fmt: skip
SEARCHES = ("annealing", "local_search")
MACHINES = {8: ["topology.nodes=2", "topology.gpus_per_node=4"], 16: ["topology.nodes=2"], 32: ["topology.nodes=4"]}
SPARE = (0, 1, 2)
MOVES = 4000            # of a search, per layer
STORE = Path("results/placement_bench.jsonl")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One machine, split and number of slots of the table of a trace."""

    trace: str
    model: str
    deal: str           # blocks: one step per domain, each GPU a block of it; batched: 64 sequences per GPU, two steps per domain
    split: str          # a: decided and played on alternate sequences of every domain; b: on one domain, then on the next
    gpus: int
    spare: int
    layers: int | None  # MoE layers played, from the first on; None: all

    def overrides(self) -> list[str]:
        """The run without its placement."""
        least, lasts = smallest_domain(self.trace), 2 if self.deal == "batched" else 1
        keys = [
            f"model={self.model}", "compute=roofline", "trace=file", f"trace.path={self.trace}",
            *MACHINES[self.gpus], f"workload.deal={self.deal}",
            "placement.replica=nearest", f"placement.spare={self.spare}", f"workload.domain_steps={lasts}",
            f"workload.steps={lasts * least['domains']}",
            f"workload.tokens_per_gpu={64 if self.deal == 'batched' else least[self.split] // self.gpus}",
        ]  # fmt: skip
        if self.layers is not None:
            keys.append(f"model.n_layers={compose([f'model={self.model}']).model.n_dense_layers + self.layers}")
        if self.split == "a":
            return [*keys, "decide.apart=true"]
        last = (f"decide.{key}={lasts}" for key in ("window", "period", "warmup"))
        return [*keys, "decide=periodic", "decide.migration=free", *last]


def cells(trace: str, model: str, deal: str, layers: int | None) -> list[Cell]:
    """All cells of a trace's table."""
    return [
        Cell(trace=trace, model=model, deal=deal, split=split, gpus=gpus, spare=spare, layers=layers)
        for split in "ab" for gpus in MACHINES for spare in SPARE
    ]  # fmt: skip


def smallest_domain(trace: str) -> dict[str, int]:
    """Tokens of the smallest domain, whole (b) and of the smaller half of its alternate sequences (a), and how many there are."""
    recorded = read_trace(trace)
    names = np.array([recorded.domain.get(int(seq), "") for seq in recorded.seq])
    least = {"a": recorded.n_tokens, "b": recorded.n_tokens, "domains": len(set(names))}
    for name in set(names):
        sequences, first, lengths = np.unique(recorded.seq[names == name], return_index=True, return_counts=True)
        assert sequences.size > 1, "alternate sequences need two of them"
        order = np.argsort(first)
        halves = [int(lengths[order][half::2].sum()) for half in (0, 1)]
        least = {**least, "a": min(least["a"], *halves), "b": min(least["b"], sum(halves))}
    return least


def measured(wanted: Sequence[Cell], methods: Sequence[str] = METHODS) -> Iterator[tuple[Cell, str, dict[str, float]]]:
    """What each method gives in each cell; runs that `STORE` has are not run again."""
    done = {}
    if STORE.exists():
        done = {row["key"]: row["got"] for row in map(json.loads, STORE.read_text().splitlines())}
    STORE.parent.mkdir(exist_ok=True)
    for cell in wanted:
        for method in methods:
            moves = [f"placement.moves={MOVES}"] if method in SEARCHES else []
            keys = [*cell.overrides(), f"placement={method}", *moves]
            key = " ".join([str(PHYSICS), *keys])
            if key not in done:
                result = cs.simulate(keys)
                reuse = [note for note in result.notes if "dealt again" in note]
                columns = ("moe_layer_s", "imbalance", "distinct_nodes")
                done[key] = {**{column: result.summary[column] for column in columns}, "reuse": "; ".join(reuse)}
                with STORE.open("a") as store:
                    store.write(json.dumps({"key": key, "got": done[key]}) + "\n")
            yield cell, method, done[key]
