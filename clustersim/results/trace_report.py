"""What a trace is, for a person: facts, faults and tables, built and not printed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from clustersim.results.facts import facts_table, numbers_table
from clustersim.types import Floats, InputError
from clustersim.workload import statistics
from clustersim.workload.trace_counts import CountRows, read_count_rows
from clustersim.workload.trace_rules import PHASE_CODES
from clustersim.workload.trace_survey import Survey, survey

BATCHES = (4, 16, 64, 256)
LAGS = (1, 8, 64)
PAIRS_MOST = 256                    # experts up to which pairs are counted; twice as many take four times as long

Progress = Callable[[float, str], None]


def trace_page(path: str | Path, *, progress: Progress = lambda fraction, what: None) -> RenderableType:
    """Everything about a trace with tokens: what it is, loads, how choices hang together, what is suspicious.

    Loads and faults are of all tokens. What needs tokens side by side is, of a large trace, of a sample, and says so.

    Raises:
        InputError: no such trace, or one that breaks the format.
    """
    found = survey(path, progress=progress)
    sample = found.sample
    assert sample is not None
    shape, meta = found.file.shape, found.file.meta
    phases = ", ".join(name for name, code in PHASE_CODES.items() if code in found.phases)
    extra = [name for name in ("gate_weights", "scores", "token_id", "flags") if name in found.file.columns]
    facts = {
        "trace": f"{path}: {meta.get('model', 'model not named')}",
        "from": str(meta.get("source", "not said")) + (f"; licence {meta['license']}" if meta.get("license") else ""),
        "tokens": f"{found.file.n_tokens:,} ({phases}); sequences {found.sequences:,}, steps {found.steps:,}, "
        f"ranks {found.ranks:,}",
        "router": f"{shape.n_layers} MoE layers, {shape.n_experts} experts, top-{shape.top_k}"
        + (f", {meta['router']}" if meta.get("router") else ""),
        "columns": ", ".join(["expert_ids", *extra]),
        "domains": ", ".join(sorted(found.by_domain)) or "not named",
    }
    if meta.get("physical_to_logical"):
        facts["placement"] = f"recorded, {len(meta['physical_to_logical'][0])} physical slots per layer"
    if not found.whole:
        facts["sampled"] = f"overlap, next layer, pairs and batches are of {sample.n_tokens:,} tokens in {8} windows"
    by_lag = ", ".join(f"{statistics.overlap(sample, lag).mean():.3f}" for lag in LAGS)
    facts["overlap"] = (
        f"{by_lag} of a token's experts were those of the token {', '.join(map(str, LAGS))} before; "
        f"{statistics.chance_overlap(sample).mean():.3f} by chance"
    )
    if shape.n_layers > 1 and np.unique(sample.seq).size > 1:
        recall, popular = (each.mean() for each in statistics.next_layer_recall(sample))
        facts["next layer"] = f"{recall:.3f} of its experts guessed from the layer before, {popular:.3f} from popularity"
    if shape.top_k > 1 and shape.n_experts <= PAIRS_MOST:
        lift = statistics.lift_p99(*statistics.pair_lift(sample.expert_ids, shape.n_experts))
        if not np.isnan(lift).all():
            often = f"{np.nanmean(lift):.1f} times as often as by chance"
            facts["pairs"] = f"the closest 1 in 100 pairs of experts go together {often}"
    if sample.gate_weights is not None:
        facts["gate weights"] = _weights(sample.gate_weights)
    parts: list[RenderableType] = [facts_table(facts), Text(), load_table(found.loads, _layers(found))]
    if len(found.by_domain) > 1:
        parts += [Text(), _domain_table(found)]
    parts += [Text(), _batch_table(found)]
    parts += [Text(f"suspicious: {fault}") for fault in found.faults]
    return Group(*parts)


def counts_page(path: str | Path) -> RenderableType:
    """Everything about a trace of counts.

    Raises:
        InputError: no such trace, or one that breaks the format.
    """
    rows = read_count_rows(path)
    layers = np.unique(rows.layer)
    steps, ranks = np.unique(rows.step).size, np.unique(rows.rank).size
    domains = sorted(set(rows.domain) - {""})
    facts = {
        "trace": f"{path}: {rows.meta.get('model', 'model not named')}, counts only",
        "from": str(rows.meta.get("source", "not said")),
        "counts": f"{len(rows.counts):,} rows, {int(rows.counts.sum()):,} choices; steps {steps:,}, ranks {ranks:,}",
        "router": f"{layers.size} MoE layers, {rows.n_experts} experts",
        "domains": ", ".join(domains) or "not named",
    }
    if rows.meta.get("counts_unit"):
        facts["unit"] = f"a count is {rows.meta['counts_unit']:.6g} of the recorded load"
    total = np.array([rows.counts[rows.layer == layer].sum(0) for layer in layers])
    parts: list[RenderableType] = [facts_table(facts), Text(), load_table(total, [str(layer) for layer in layers])]
    parts += [Text(f"suspicious: {fault}") for fault in count_faults(rows)]
    return Group(*parts)


def count_faults(rows: CountRows) -> list[str]:
    """What of counts is not what it seems, a line each."""
    said = []
    empty = rows.counts.sum(1) == 0
    if empty.any():
        said.append(f"{int(empty.sum()):,} of {empty.size:,} rows count nothing: a dense layer, or a buffer that was not full")
    layers = np.unique(rows.layer)
    total = {int(layer): rows.counts[rows.layer == layer].sum(0) for layer in layers}
    for period in range(1, len(layers)):
        pairs = zip(layers[:-period], layers[period:], strict=True)
        if all(np.array_equal(total[int(a)], total[int(b)]) and total[int(a)].any() for a, b in pairs):
            said.append(f"layers repeat: layer l + {period} is a copy of layer l, so only {period} of {len(layers)} are recorded")
            break
    return said


def check_page(path: str | Path, *, progress: Progress = lambda fraction, what: None) -> tuple[list[str], list[str]]:
    """(breaches of the format, suspicious facts) of a trace, the first 20 of each kind.

    Raises:
        InputError: it cannot be opened at all.
    """
    place = Path(path)
    if (place / "counts.parquet").is_file() and not (place / "tokens.parquet").is_file():
        return [], count_faults(read_count_rows(place))
    found = survey(place, progress=progress, strict=False)
    if (place / "counts.parquet").is_file():
        try:
            read_count_rows(place)
        except InputError as error:
            found.problems.append(str(error))
    return found.problems, found.faults


def load_table(load: np.ndarray[tuple[int, int], np.dtype[np.int64]], names: list[str]) -> Table:
    """One row per layer; loads [layers, experts]."""
    table = numbers_table("layer", "load max/mean", "load CV", "entropy", "Gini", "least/mean", "distinct experts")
    for name, row in zip(names, load, strict=True):
        if not row.sum():
            table.add_row(name, *["-"] * 5, "0")
            continue
        mean = row.mean()
        table.add_row(
            name, f"{row.max() / mean:.2f}", f"{row.std() / mean:.3f}", f"{float(statistics.normalised_entropy(row)):.3f}",
            f"{float(statistics.gini(row)):.3f}", f"{row.min() / mean:.2f}", f"{np.count_nonzero(row)}",
        )  # fmt: skip
    return table


def _layers(found: Survey) -> list[str]:
    real = found.file.meta.get("moe_layers")
    return [str(one) for one in (real if isinstance(real, list) and len(real) == len(found.loads) else range(len(found.loads)))]


def _domain_table(found: Survey) -> Table:
    """Loads within a domain are more uneven than over all, where domains load different experts."""
    table = numbers_table("domain", "choices", "load CV", "max/mean", "correlation with all")
    whole = found.loads
    for name, load in sorted(found.by_domain.items()):
        mean = load.mean(1)
        told = mean > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            alike = [np.corrcoef(a, b)[0, 1] for a, b in zip(load[told], whole[told], strict=True)]
        table.add_row(
            name, f"{int(load.sum()):,}", f"{(load[told].std(1) / mean[told]).mean():.3f}",
            f"{(load[told].max(1) / mean[told]).mean():.2f}", f"{np.nanmean(alike):.2f}",
        )  # fmt: skip
    return table


def _batch_table(found: Survey) -> Table:
    sample = found.sample
    assert sample is not None
    table = numbers_table("tokens in a batch", "distinct experts: mixed", "neighbours", "even routing")
    n_experts, top_k = sample.n_experts, sample.top_k
    for tokens in BATCHES:
        mixed, near = statistics.distinct_experts(sample, tokens)
        even = n_experts * (1 - (1 - top_k / n_experts) ** tokens)
        table.add_row(str(tokens), _mean(mixed), _mean(near), f"{even:.1f}")
    return table


def _mean(values: Floats) -> str:
    return "-" if np.isnan(values).all() else f"{values.mean():.1f}"


def _weights(weights: np.ndarray[tuple[int, int, int], np.dtype[np.float32]]) -> str:
    total = weights.sum(2, keepdims=True)
    shares = -np.sort(-np.divide(weights, total, out=np.zeros_like(weights), where=total > 0), axis=2)
    by_slot = " ".join(f"{share:.3f}" for share in shares.mean((0, 1)))
    return f"{by_slot} of their sum, largest first; the sum is {float(total.mean()):.3f}"
