"""The kind `exchange`: a case as tokens, machine, kernel and network, to the seconds that its harness would have shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from clustersim import exchange as exchanges
from clustersim.cluster import Cluster
from clustersim.exchange.collective import nccl_bytes
from clustersim.exchange.payloads import Loaded, payload_bytes
from clustersim.exchange.software import EQUIPMENT, beyond, equipped
from clustersim.network.alone import exchange_times
from clustersim.pick import did_you_mean, pick
from clustersim.types import Floats, InputError, Routing, Transfers
from clustersim.validation.draws import in_order, routing_of
from clustersim.validation.machines import machine
from clustersim.validation.notes import needed, note, only

KEYS = (
    "gpu", "gpus", "gpus_per_node", "nic", "exchange", "phase", "tokens_per_gpu", "hidden", "top_k", "experts", "payload",
    "routing", "sms", "bytes_per_gpu", "kernel",
)  # fmt: skip
STATISTICS: dict[str, Callable[[Floats], float]] = {
    "mean": lambda each: float(each.mean()), "max": lambda each: float(each.max()), "rank0": lambda each: float(each[0]),
}  # fmt: skip
ENOUGH = 2048           # tokens on all GPUs together from which one draw is enough
EXACT = 64              # GPUs up to which rates are exact; beyond they are agreed on every half percent


def exchange(case: Mapping[str, Any]) -> float:
    """Seconds of one exchange, or bytes/s where the metric says so.

    Raises:
        InputError: what the case asks for is not modelled; names the key.
    """
    only(case, *KEYS)
    (name,) = needed(case, "exchange")
    metric = str(case.get("metric", "seconds"))
    if not metric.startswith(("seconds", "bytes/s")):
        raise InputError(f"case.metric={metric}: must begin with seconds or bytes/s")
    if case["statistic"] not in STATISTICS:
        raise InputError(f"case.statistic={case['statistic']}: must be {', '.join(STATISTICS)}")
    seconds, moved = [], []
    for draw in range(_draws(case)):
        transfers, cluster = _transfers(str(name), case, metric, draw)
        arrived = exchange_times(cluster, transfers, resolution=0.0 if cluster.n_gpus <= EXACT else 0.005)
        seconds.append(STATISTICS[case["statistic"]](arrived))
        moved.append((transfers.logical_bytes or float(transfers.nbytes.sum())) / cluster.n_gpus)
    mean = float(np.mean(seconds))
    if not mean:
        raise InputError(f"case.gpus={case.get('gpus', 1)}: nothing travels")
    if metric.startswith("seconds"):
        return mean
    return float(np.mean(moved)) / mean


def _draws(case: Mapping[str, Any]) -> int:
    """Draws of tokens to take the mean over: what is simulated is the expectation, not the luck of a few tokens."""
    if case.get("tokens_per_gpu") is None or case.get("routing") == "balanced":
        return 1
    drawn = case["tokens_per_gpu"] * case.get("gpus", 1)
    return int(np.clip(ENOUGH // max(1, drawn), 1, 16))


def _transfers(name: str, case: Mapping[str, Any], metric: str, draw: int) -> tuple[Transfers, Cluster]:
    if name not in exchanges.__all__:
        near = did_you_mean(name, exchanges.__all__)
        raise InputError(f"case.exchange={name}: there is no such exchange{near} (known: {', '.join(exchanges.__all__)})")
    options = {key: case[key] for key in ("sms", "kernel") if case.get(key) is not None}
    plain = machine(case)
    cluster = equipped(name, options, plain)
    for text in beyond(name, options, cluster, **{k: case[k] for k in ("tokens_per_gpu",) if case.get(k)}):
        note(text)
    if case.get("bytes_per_gpu") is not None:
        if name != "nccl_alltoall":
            raise InputError(f"case.bytes_per_gpu: {name} is told tokens; bytes go with nccl_alltoall")
        each = float(case["bytes_per_gpu"]) / cluster.n_gpus
        return nccl_bytes(np.full((cluster.n_gpus, cluster.n_gpus), each), cluster), cluster
    tokens, hidden, top_k, experts, payload, phase = needed(
        case, "tokens_per_gpu", "hidden", "top_k", "experts", "payload", "phase"
    )
    if phase not in ("dispatch", "combine"):
        raise InputError(f"case.phase={phase}: must be dispatch or combine")
    if experts % cluster.n_gpus:
        raise InputError(f"case.experts={experts}: cannot be spread evenly over {cluster.n_gpus} GPUs")
    weight = payload_bytes(payload, hidden, "case.payload")
    model = Loaded(top_k=top_k, hidden=hidden, dispatch_token_bytes=weight, combine_token_bytes=weight)
    if name == "deepep_normal":
        options["notify"] = "notify apart" not in metric
    if name not in EQUIPMENT and "kernel" in options:
        raise InputError(f"case.kernel={options['kernel']}: {name} has no kernel")
    function = pick(exchanges, name, **options)
    routing = _routing(str(case.get("routing", "uniform")), cluster.n_gpus, tokens, experts, top_k, draw)
    return function(phase, routing, in_order(experts, cluster.n_gpus), cluster, model), cluster


@lru_cache(maxsize=16)
def _routing(words: str, gpus: int, tokens: int, experts: int, top_k: int, draw: int) -> Routing:
    rng = np.random.default_rng([draw, gpus, tokens, experts, top_k])
    return routing_of(rng, words, gpus=gpus, tokens=tokens, experts=experts, top_k=top_k)
