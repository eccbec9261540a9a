"""A picture of a trace: loads by rank and layer, overlap by distance, what a layer tells of the next, batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from clustersim.types import InputError, Trace
from clustersim.workload import statistics
from clustersim.workload.trace_survey import Survey, survey
from clustersim.writing import not_drawn

LAGS = (1, 2, 4, 8, 16, 32, 64)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def draw_trace(path: Path, target: Path) -> None:
    """Draw the trace at `path` into a picture at `target`; its suffix is the format (png, svg, pdf).

    Raises:
        InputError: no such trace, matplotlib is not installed, or it cannot write that file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("inspect --plot: needs matplotlib; pip install 'clustersim[plot]'") from error
    found = survey(path)
    sample = found.sample
    assert sample is not None
    figure = Figure(figsize=(13, 8), dpi=110, layout="constrained")
    axes = figure.subplots(2, 3)
    _ranked(axes[0][0], found)
    _heat(figure, axes[0][1], found)
    _uneven(axes[0][2], found)
    _overlap(axes[1][0], sample)
    _recall(axes[1][1], sample)
    _batches(axes[1][2], sample)
    some = "" if found.whole else f"; lower row: {sample.n_tokens:,} of them"
    shape = found.file.shape
    figure.suptitle(
        f"{found.file.meta.get('model', 'model not named')}: {found.file.n_tokens:,} tokens{some}, {shape.n_layers} layers, "
        f"{shape.n_experts} experts, top-{shape.top_k}", fontsize=11,
    )  # fmt: skip
    try:
        figure.savefig(target)
    except (OSError, ValueError) as error:
        raise InputError(f"inspect -o {target}: {not_drawn(error)}") from error


def _ranked(axes: Any, found: Survey) -> None:
    load = -np.sort(-found.loads, axis=1) / np.maximum(found.loads.mean(1, keepdims=True), 1e-12)
    axes.plot(load.T, color="#1f77b4", alpha=0.25, linewidth=0.8)
    axes.plot(load.mean(0), color="black", label="mean over layers")
    for name, own in sorted(found.by_domain.items())[:8]:
        axes.plot((-np.sort(-own, axis=1) / np.maximum(own.mean(1, keepdims=True), 1e-12)).mean(0), linestyle="--", label=name)
    axes.set(title="load of experts, by rank", xlabel="expert, most loaded first", ylabel="load / mean", yscale="symlog")
    axes.legend(fontsize=7)


def _heat(figure: Any, axes: Any, found: Survey) -> None:
    load = found.loads / np.maximum(found.loads.mean(1, keepdims=True), 1e-12)
    image = axes.imshow(load, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0, vmax=min(float(load.max()), 4.0))
    figure.colorbar(image, ax=axes, label="load / mean")
    axes.set(title="load of experts, by layer", xlabel="expert", ylabel="MoE layer")


def _uneven(axes: Any, found: Survey) -> None:
    mean = np.maximum(found.loads.mean(1), 1e-12)
    axes.plot(found.loads.std(1) / mean, label="CV")
    axes.plot(found.loads.max(1) / mean, label="max / mean")
    axes.plot(statistics.gini(np.maximum(found.loads, 0) + 1e-12), label="Gini")
    axes.set(title="unevenness, by layer", xlabel="MoE layer", ylim=(0, None))
    axes.legend(fontsize=7)


def _overlap(axes: Any, sample: Trace) -> None:
    axes.plot(LAGS, [statistics.overlap(sample, lag).mean() for lag in LAGS], marker="o", label="recorded")
    axes.axhline(statistics.chance_overlap(sample).mean(), color="gray", linestyle=":", label="by chance")
    axes.set(title="experts shared with an earlier token", xlabel="tokens before", ylabel="share", xscale="log", ylim=(0, None))
    axes.legend(fontsize=7)


def _recall(axes: Any, sample: Trace) -> None:
    axes.set(title="next layer's experts, guessed", xlabel="from MoE layer", ylabel="recall", ylim=(0, 1))
    if sample.n_layers > 1 and np.unique(sample.seq).size > 1:
        recall, popular = statistics.next_layer_recall(sample)
        axes.plot(recall, label="from this layer's")
        axes.plot(popular, color="gray", linestyle=":", label="from popularity")
        axes.legend(fontsize=7)
    else:
        axes.text(0.5, 0.5, "one layer or one sequence: cannot be told", ha="center", transform=axes.transAxes)


def _batches(axes: Any, sample: Trace) -> None:
    sizes = [tokens for tokens in BATCHES if tokens <= sample.n_tokens]
    both = [statistics.distinct_experts(sample, tokens) for tokens in sizes]
    axes.plot(sizes, [mixed.mean() for mixed, _ in both], marker="o", label="tokens from anywhere")
    axes.plot(sizes, [near.mean() for _, near in both], marker="s", label="neighbours in a sequence")
    share = sample.top_k / sample.n_experts
    even = [sample.n_experts * (1 - (1 - share) ** tokens) for tokens in sizes]
    axes.plot(sizes, even, color="gray", linestyle=":", label="even routing")
    axes.set(title="experts that a batch touches", xlabel="tokens in the batch", ylabel="experts", xscale="log", ylim=(0, None))
    axes.legend(fontsize=7)
