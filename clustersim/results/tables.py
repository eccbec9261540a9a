"""From a forward pass as it happened to the tables that are kept, with their identities asserted. Columns carry their units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from clustersim.cluster import Cluster
from clustersim.cost import COLUMNS as COST_COLUMNS
from clustersim.engine.gpu import Played
from clustersim.model import Model
from clustersim.network.measures import collisions
from clustersim.results.counting import LayerCounts
from clustersim.results.replicates import INTERVALS
from clustersim.types import Floats

CAUSE_COLUMNS = (           # of a layer: the first is the sum of the others
    "moe_s", "ideal_s", "popularity_s", "source_s", "placement_s", "exchange_s", "topology_s", "joint_s",
)  # fmt: skip


SPENT_COLUMNS = ("attention_s", "expert_s", "other_s", "dispatch_s", "combine_s")       # parts of a GPU's step, in its summary


def gpus_table(played: Played, counts: Sequence[LayerCounts | None], step: int = 0) -> pl.DataFrame:
    """Per layer and GPU: the parts of the compute stream's time, and what the communication stream did beside it."""
    n_layers, _, n = played.marks.shape
    parts = played.parts()
    total = np.sum([part.sum(axis=0) for part in parts.values()], axis=0)
    assert np.allclose(total, played.step_s, rtol=1e-9, atol=0), "the parts of a GPU's time do not sum to the step"
    zero = np.zeros(n)

    def of_exchanges(name: str) -> Floats:
        return np.array([zero if both is None else sum(getattr(one, name) for one in both) for both in played.exchanges])

    return pl.DataFrame(
        {
            "step": np.full(n_layers * n, step, np.uint32),
            "layer": np.repeat(np.arange(n_layers, dtype=np.uint16), n),
            "gpu": np.tile(np.arange(n, dtype=np.uint32), n_layers),
            **{name: part.ravel() for name, part in parts.items()},
            "wait_s": of_exchanges("wait_s").ravel(),
            "comm_busy_s": of_exchanges("busy_s").ravel(),
            "sent_bytes": of_exchanges("sent").ravel(),
            "received_bytes": of_exchanges("received").ravel(),
            "expert_tokens": np.array([zero if c is None else c.gpu_tokens for c in counts], np.int64).ravel(),
        }
    )


def links_table(played: Played, cluster: Cluster, step: int = 0) -> pl.DataFrame:
    """Per MoE layer and link: bytes of dispatch and combine, and the seconds they take the link by itself."""
    layers = [layer for layer, both in enumerate(played.exchanges) if both is not None]
    n = len(cluster.links)
    both = [pair for pair in played.exchanges if pair is not None]
    dispatch = np.array([pair[0].link_bytes for pair in both]).reshape(-1, n)
    combine = np.array([pair[1].link_bytes for pair in both]).reshape(-1, n)
    return pl.DataFrame(
        {
            "step": np.full(len(layers) * n, step, np.uint32),
            "layer": np.repeat(np.array(layers, np.uint16), n),
            "link": np.tile(np.arange(n, dtype=np.uint32), len(layers)),
            "kind": [link.kind for link in cluster.links] * len(layers),
            "name": [link.name for link in cluster.links] * len(layers),
            "capacity_bytes_per_s": np.tile(cluster.capacity, len(layers)),
            "dispatch_bytes": dispatch.ravel(),
            "combine_bytes": combine.ravel(),
            "busy_s": ((dispatch + combine) / cluster.capacity).ravel(),
        },
        schema_overrides={"kind": pl.String, "name": pl.String},
    )


def experts_table(counts: Sequence[LayerCounts | None], step: int = 0) -> pl.DataFrame:
    """Per MoE layer and logical expert: choices asked, kept, dropped and rerouted, and rows of padding."""
    layers = [(layer, c) for layer, c in enumerate(counts) if c is not None]
    if not layers:
        return pl.DataFrame(schema=_EXPERT_COLUMNS)
    sizes = [c.asked.size for _, c in layers]
    columns = {
        "step": np.full(sum(sizes), step, np.uint32),
        "layer": np.repeat(np.array([layer for layer, _ in layers], np.uint16), sizes),
        "expert": np.concatenate([np.arange(size, dtype=np.uint32) for size in sizes]),
    }
    counted = ("asked", "kept", "dropped", "replicas", "rerouted_away", "rerouted_here", "padding_rows")
    return pl.DataFrame(columns | {name: np.concatenate([getattr(c, name) for _, c in layers]) for name in counted})


_EXPERT_COLUMNS = {
    "step": pl.UInt32, "layer": pl.UInt16, "expert": pl.UInt32,
    **dict.fromkeys(("asked", "kept", "dropped", "replicas", "rerouted_away", "rerouted_here", "padding_rows"), pl.Int64),
}  # fmt: skip


def layers_table(played: Played, gpus: pl.DataFrame, cluster: Cluster, counts: Sequence[LayerCounts | None]) -> pl.DataFrame:
    """Per layer: mean and largest of the GPUs' times, and what the layer says about routing and network."""
    compute = pl.col("attention_s") + pl.col("expert_s") + pl.col("other_s")
    times = {
        "dispatch_s": pl.col("dispatch_s"), "compute_s": compute, "combine_s": pl.col("combine_s"), "wait_s": pl.col("wait_s"),
        "tensor_s": pl.col("tensor_s"),
        "exposed_comm_s": pl.col("dispatch_s") + pl.col("combine_s") + pl.col("tensor_s") + pl.col("idle_s"),
    }  # fmt: skip
    means = [expression.mean().alias(name) for name, expression in times.items()]
    largest = [expression.max().alias(name.removesuffix("_s") + "_max_s") for name, expression in times.items()]
    table = gpus.group_by("step", "layer", maintain_order=True).agg(*means, *largest)
    rows = [_layer_row(pair, c, cluster) for pair, c in zip(played.exchanges, counts, strict=True)]
    return table.hstack(pl.DataFrame(rows, schema=_LAYER_COLUMNS))


_LAYER_COLUMNS = {
    "imbalance": pl.Float64, "dropped": pl.Int64, "capacity_used": pl.Float64, "nvlink_bytes": pl.Float64,
    "nic_bytes": pl.Float64, "over_bound": pl.Float64, "bottleneck": pl.String, "bottleneck_busy_s": pl.Float64,
    "logical_bytes": pl.Float64,
    "partly_dropped_tokens": pl.Int64, "fully_dropped_tokens": pl.Int64, "rerouted": pl.Int64, "gate_mass_dropped": pl.Float64,
    "gate_mass_lost": pl.Float64, "padding_sent_bytes": pl.Float64, "padding_computed_rows": pl.Int64,
}  # fmt: skip


def causes_table(causes: Mapping[str, Floats], n_steps: int, model: Model) -> pl.DataFrame:
    """What each cause makes a layer longer by, `CAUSE_COLUMNS`; null in dense layers, and everywhere where nobody asked.

    The parts sum to the layer's time (asserted).
    """
    columns = {}
    n_layers, moe_layers = model.n_layers, set(model.moe_layers)
    for name in CAUSE_COLUMNS:
        seconds = causes[name].tolist() if causes else [None] * n_steps * n_layers
        columns[name] = [value if i % n_layers in moe_layers else None for i, value in enumerate(seconds)]
    if causes:
        parts = np.sum([causes[name] for name in CAUSE_COLUMNS if name != "moe_s"], axis=0)
        assert np.allclose(parts, causes["moe_s"], rtol=1e-9, atol=1e-15), "the causes of a layer do not sum to its time"
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.Float64))


def summary_table(row: Mapping[str, Any]) -> pl.DataFrame:
    """The row of summary.parquet; numbers that may be null are floats all the same."""
    return pl.DataFrame([row], schema_overrides={name: pl.Float64 for name in _MAY_BE_NULL if name in row})


_MAY_BE_NULL = (
    "capacity_factor", "tokens_per_s", "tokens_per_s_per_gpu", "gate_mass_dropped", "gate_mass_lost", "capacity_used",
    "imbalance", "over_bound", "bottleneck_class_share", "ecmp_collision", "nvlink_bytes", "nic_bytes", "logical_bytes",
    "seconds_saved_by_dropping",
    "moe_layer_s", "balancedness", "utilisation", "gap_to_least", "cross_node_copies", "distinct_nodes",
    "time_per_output_token_s", "tokens_per_s_per_user", *CAUSE_COLUMNS, *COST_COLUMNS, "memory_bandwidth_s",
    *(f"{name}_ci95" for name in INTERVALS),
)  # fmt: skip


def _layer_row(pair: Any, counts: LayerCounts | None, cluster: Cluster) -> dict[str, Any]:
    if pair is None or counts is None:              # a dense layer
        return dict.fromkeys(_LAYER_COLUMNS)
    carried = pair[0].link_bytes + pair[1].link_bytes
    busy = carried / cluster.capacity
    mean = counts.gpu_tokens.mean()
    bound = pair[0].bound_s + pair[1].bound_s
    return {
        "imbalance": float(counts.gpu_tokens.max() / mean) if mean else None,
        "dropped": int(counts.dropped.sum()),
        "capacity_used": float(counts.kept.sum() / counts.room) if counts.room else None,
        "nvlink_bytes": _entering(carried, cluster, "nvlink_up"),
        "nic_bytes": _entering(carried, cluster, "nic_up"),
        "over_bound": (pair[0].span_s + pair[1].span_s) / bound if bound > 0 else None,
        "bottleneck": cluster.links[int(busy.argmax())].name if bound > 0 else None,
        "bottleneck_busy_s": float(busy.max()),
        "logical_bytes": _payload(pair),
        "partly_dropped_tokens": counts.partly_dropped,
        "fully_dropped_tokens": counts.fully_dropped,
        "rerouted": int(counts.rerouted_here.sum()),
        "gate_mass_dropped": counts.gate_mass_dropped / counts.gate_mass if counts.gate_mass else None,
        "gate_mass_lost": counts.gate_mass_lost / counts.gate_mass if counts.gate_mass else None,
        "padding_sent_bytes": counts.padding_sent_bytes,
        "padding_computed_rows": int(counts.padding_rows.sum()),
    }


def _payload(exchanges: Iterable[Any]) -> float | None:
    """Bytes of payload in every copy, None where an exchange does not count them."""
    total = float(sum(one.logical_bytes for one in exchanges))
    return None if math.isnan(total) else total


def _entering(carried: Floats, cluster: Cluster, kind: str) -> float:
    """Bytes on the links of one kind. On the way up every byte on NVLink, or on the network, is counted once."""
    return float(carried[[link.id for link in cluster.links if link.kind == kind]].sum())


def collision(links: pl.DataFrame, cluster: Cluster) -> tuple[float, str] | None:
    """By how much routes that pile up prolong the busiest link of a kind, and the kind where that is most; None without
    parallel links. See `measures.collisions`.
    """
    carried = (links["dispatch_bytes"] + links["combine_bytes"]).to_numpy().reshape(-1, len(cluster.links)).sum(axis=0)
    return max(((ratio, kind) for kind, ratio in collisions(cluster, carried).items()), default=None)


def summary_row(
    steps: Sequence[Played], tables: Mapping[str, pl.DataFrame], counts: Sequence[LayerCounts | None], n_tokens: int, n_gpus: int,
    held_s: float = 0.0, made: float | None = None, sequences: int | None = None,
) -> dict[str, Any]:
    """The run in one row of numbers; without `seconds_saved_by_dropping`, which needs a second run.

    Args:
        counts: of all layers of all steps.
        n_tokens: of one step.
        held_s: mean over steps of what a step waits before it begins.
        made: tokens that a step of decoding adds to its sequences; None: it is no decoding, and its own tokens count.
        sequences: in flight, in decoding.

    Returns:
        Seconds and bytes of one step, means over the steps; ratios and the bottleneck over all of them together.
    """
    gpus, layers, links, n_steps = tables["gpus"], tables["layers"], tables["links"], len(steps)
    real = [c for c in counts if c is not None]
    asked, kept = sum(int(c.asked.sum()) for c in real), sum(int(c.kept.sum()) for c in real)
    compute = float(gpus.select(pl.sum("attention_s") + pl.sum("expert_s") + pl.sum("other_s")).item()) / n_gpus / n_steps
    busy = links.group_by("link", "name", maintain_order=True).agg(pl.sum("busy_s") / n_steps)
    busy = busy.sort("busy_s", "link", descending=[True, False])
    exchanges = [one for played in steps for pair in played.exchanges if pair is not None for one in pair]
    bound = sum(one.bound_s for one in exchanges)
    step_s = sum(played.step_s for played in steps) / n_steps + held_s
    return {
        "step_s": step_s,
        "compute_s": compute,
        **{name: float(gpus[name].sum()) / n_gpus / n_steps for name in SPENT_COLUMNS},
        "exposed_comm_s": max(0.0, step_s - compute),      # where nothing is exchanged they differ by rounding
        "wait_s": float(gpus["wait_s"].sum()) / n_gpus / n_steps,
        "tensor_s": float(gpus["tensor_s"].sum()) / n_gpus / n_steps,
        "tokens": n_tokens,
        "tokens_per_s": (n_tokens if made is None else made) / step_s if step_s else None,
        "tokens_per_s_per_gpu": (n_tokens if made is None else made) / step_s / n_gpus if step_s else None,
        "time_per_output_token_s": step_s * sequences / made if made and sequences else None,
        "tokens_per_s_per_user": made / sequences / step_s if made and sequences and step_s else None,
        "drop_rate": (asked - kept) / asked if asked else 0.0,
        "fully_dropped": sum(c.fully_dropped for c in real) / max(1, n_tokens * len(real)),
        **trade(real, n_tokens),
        "moe_layers": len(real),
        "experts_per_token": kept / max(1, n_tokens * len(real)),
        "imbalance": layers["imbalance"].mean(),
        "over_bound": sum(one.span_s for one in exchanges) / bound if bound > 0 else None,
        "bottleneck": busy["name"][0] if bound > 0 else None,
        "bottleneck_busy_s": float(busy["busy_s"][0]) if bound > 0 else 0.0,
        **_limiting(links),
        "nvlink_bytes": float(layers["nvlink_bytes"].sum()) / n_steps,
        "nic_bytes": float(layers["nic_bytes"].sum()) / n_steps,
        "logical_bytes": None if (payload := _payload(exchanges)) is None else payload / n_steps,
        "solves": sum(played.solves for played in steps),
        "events": sum(played.events for played in steps),
    }


def link_class(link: str) -> str:
    """What a link is of, whichever way it leads: `nic` of the kind `nic_up`, or of the link `nic_up 12`."""
    return link.partition(" ")[0].removesuffix("_up").removesuffix("_down")


def _limiting(links: pl.DataFrame) -> dict[str, Any]:
    """The class of links that limits exchanges: of every exchange the busiest link, their seconds by class."""
    longest: dict[str, float] = {}
    for phase in ("dispatch", "combine"):
        alone = pl.col(f"{phase}_bytes") / pl.col("capacity_bytes_per_s")
        layers = links.group_by("step", "layer", maintain_order=True)
        found = layers.agg(pl.col("kind").get(alone.arg_max()), alone.max().alias("seconds"))
        for kind, seconds in found.select("kind", "seconds").iter_rows():
            longest[link_class(kind)] = longest.get(link_class(kind), 0.0) + seconds
    total = sum(longest.values())
    if not total:
        return {"bottleneck_class": None, "bottleneck_class_share": None}
    first = max(sorted(longest), key=longest.__getitem__)
    return {"bottleneck_class": first, "bottleneck_class_share": longest[first] / total}


def trade(real: Sequence[LayerCounts], n_tokens: int) -> dict[str, Any]:
    """What a capacity costs beside drop_rate and fully_dropped: mean or sum over the MoE layers."""
    asked, kept = sum(int(c.asked.sum()) for c in real), sum(int(c.kept.sum()) for c in real)
    room = sum(c.room for c in real if c.room is not None)
    mass = sum(c.gate_mass for c in real if c.gate_mass is not None)
    padding = sum(int(c.padding_rows.sum()) for c in real)
    return {
        "partly_dropped": sum(c.partly_dropped for c in real) / max(1, n_tokens * len(real)),
        "rerouted_rate": sum(int(c.rerouted_here.sum()) for c in real) / asked if asked else 0.0,
        "gate_mass_dropped": sum(c.gate_mass_dropped for c in real) / mass if mass else None,
        "gate_mass_lost": sum(c.gate_mass_lost for c in real) / mass if mass else None,
        "capacity_used": kept / room if room else None,
        "padding_sent_bytes": sum(c.padding_sent_bytes for c in real),
        "padding_computed_rows": padding,
        "padding_share": padding / (kept + padding) if kept + padding else 0.0,
    }
