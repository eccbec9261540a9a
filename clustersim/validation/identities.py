"""The kinds that are arithmetic: distinct places, drops, closed forms, recorded counts, EPLB. No kernel costs anything here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from clustersim import exchange as exchanges
from clustersim.cluster import load_cluster
from clustersim.exchange.copies import count_copies, distinct
from clustersim.exchange.payloads import Loaded
from clustersim.network.pairs import transfer
from clustersim.placement.deepseek import rebalance
from clustersim.types import Floats, InputError, Placement, Routing
from clustersim.units import parse_bandwidth
from clustersim.validation.draws import in_order, routing_of, uniform
from clustersim.validation.notes import needed, only

TOKENS = 1 << 17        # drawn to count distinct places; the mean of at most 8 of them is then known to 0.05 % or better
ROUNDS = 200            # draws of a batch to count its drops


def distinct_places(case: Mapping[str, Any]) -> float:
    """Mean number of distinct nodes or GPUs that the experts of a token are on, in drawn tokens."""
    only(case, "of", "gpus", "gpus_per_node", "experts", "top_k", "routing")
    of, gpus, experts, top_k = needed(case, "of", "gpus", "experts", "top_k")
    if of not in ("nodes", "ranks"):
        raise InputError(f"case.of={of}: must be nodes or ranks")
    if experts % gpus:
        raise InputError(f"case.experts={experts}: cannot be spread evenly over {gpus} GPUs")
    rng = np.random.default_rng([gpus, experts, top_k])
    words = str(case.get("routing", "uniform"))
    routing = routing_of(rng, words, gpus=1, tokens=TOKENS, experts=experts, top_k=top_k)
    places = routing.assigned.T // (experts // gpus)
    if of == "nodes":
        places = places // case.get("gpus_per_node", 8)
    return float(count_copies(routing.source, distinct(places), 1, int(places.max()) + 1).sum() / TOKENS)


def dropped(case: Mapping[str, Any]) -> tuple[float, float]:
    """Share of a uniform router's choices beyond floor(factor x tokens x k / experts) places of an expert; its standard error."""
    only(case, "tokens", "experts", "top_k", "capacity_factor")
    tokens, experts, top_k, factor = needed(case, "tokens", "experts", "top_k", "capacity_factor")
    places = math.floor(factor * tokens * top_k / experts)
    rng = np.random.default_rng([tokens, experts, top_k, round(1000 * factor)])
    if top_k == 1:
        loads = rng.multinomial(tokens, np.full(experts, 1 / experts), size=8 * ROUNDS)
    else:
        loads = np.stack([
            np.bincount(uniform(rng, tokens, experts, top_k).ravel(), minlength=experts) for _ in range(ROUNDS)
        ])  # fmt: skip
    shares = np.maximum(0, loads - places).sum(axis=1) / (tokens * top_k)
    return float(shares.mean()), float(shares.std(ddof=1) / math.sqrt(shares.size))


def sigmas(simulated: tuple[float, float], measured: float, case: Mapping[str, Any]) -> float:
    """How many standard errors a sampled share is off, of the sample and of the rounding of the printed figure together."""
    digits = len(f"{100 * measured:.10f}".rstrip("0").partition(".")[2])
    printed = 0.01 * 0.5 * 10.0**-digits
    return (simulated[0] - measured) / math.hypot(simulated[1], printed)


def closed_form(case: Mapping[str, Any]) -> float:
    """Seconds of a dispatch and a combine through two GPUs of one link, times micro-batches and layers."""
    only(case, "tokens_per_gpu", "top_k", "hidden", "dispatch_bytes", "combine_bytes", "bandwidth", "micro_batches", "layers")
    tokens, top_k, hidden, there, back = needed(case, "tokens_per_gpu", "top_k", "hidden", "dispatch_bytes", "combine_bytes")
    rate = parse_bandwidth(case.get("bandwidth"), "case.bandwidth")
    wire = f"{rate:.17g} B/s"
    pair = load_cluster("ideal_rail", nodes=2, gpus_per_node=1, nic={"bandwidth": wire, "achievable": None})
    model = Loaded(
        top_k=top_k, hidden=hidden, dispatch_token_bytes=float(there * hidden), combine_token_bytes=float(back * hidden)
    )
    there_all = [np.tile(np.arange(top_k) + (1 - gpu) * top_k, (tokens, 1)) for gpu in range(2)]     # all on the other GPU
    ids = np.concatenate(there_all)
    routing = Routing(
        asked=ids, assigned=ids, weights=None, source=np.repeat(np.arange(2), tokens), index=np.tile(np.arange(tokens), 2),
        capacity=None,
    )
    seconds = 0.0
    for phase in ("dispatch", "combine"):
        t = exchanges.direct(phase, routing, in_order(2 * top_k, 2), pair, model)
        nbytes = np.zeros((2, 2))
        np.add.at(nbytes, (t.src, t.dst), t.nbytes)
        seconds += transfer(pair, nbytes).makespan
    return seconds * int(case.get("micro_batches", 1)) * int(case.get("layers", 1))


def load(case: Mapping[str, Any]) -> list[float]:
    """Largest over mean rows of an expert in each layer, when recorded counts are placed, one expert to a GPU, and exchanged."""
    only(case, "top_k", "tokens", "layers", "counts")
    (counts,) = needed(case, "counts")
    ratios = []
    for layer in np.asarray(counts, np.int64):
        n = layer.size
        placement = Placement(gpu_of=np.arange(n), expert_of=np.arange(n))
        nobody = np.zeros((0, 1), np.int64)
        padding = np.zeros((n + 1, n), np.int64)
        padding[n] = layer                      # all from one GPU more, which holds no expert: nothing stays at home
        routing = Routing(
            asked=nobody, assigned=nobody, weights=None, source=np.zeros(0, np.int64), index=np.zeros(0, np.int64),
            capacity=None, padding=padding,
        )
        t = exchanges.direct("dispatch", routing, placement, _Line(n + 1), Loaded(
            top_k=1, hidden=1, dispatch_token_bytes=1.0, combine_token_bytes=1.0,
        ))  # fmt: skip
        received: Floats = np.bincount(t.dst, t.nbytes, n + 1)[:n].astype(np.float64)
        ratios.append(float(received.max() / received.mean()))
    return ratios


def worst_part(simulated: list[float], measured: list[float], case: Mapping[str, Any]) -> float:
    """The largest relative error of the parts of a list, signed."""
    errors = np.array(simulated) / np.array(measured) - 1
    return float(errors[np.abs(errors).argmax()])


def eplb(case: Mapping[str, Any]) -> list[list[int]]:
    """The expert in every slot as DeepSeek's EPLB deals them, layer by layer."""
    only(case, "weights", "slots", "groups", "nodes", "gpus")
    weights, slots, groups, nodes, gpus = needed(case, "weights", "slots", "groups", "nodes", "gpus")
    expert_of, *_ = rebalance(np.array(weights, float), n_slots=slots, n_groups=groups, n_nodes=nodes, n_gpus=gpus)
    dealt: list[list[int]] = expert_of.tolist()
    return dealt


def share_of_slots(simulated: list[list[int]], measured: list[list[int]], case: Mapping[str, Any]) -> float:
    """The share of slots that hold another expert."""
    return float((np.array(simulated) != np.array(measured)).mean())


class _Line:
    """GPUs in a row, each its own node."""

    def __init__(self, n: int) -> None:
        self.n_gpus = self.n_nodes = n
        self.gpus_per_node = 1
        self.node_of, self.local_of = np.arange(n), np.zeros(n, np.int64)
        self.gpu: Any = None
