"""How much of every layer each cause is: the run played again without it, and without all. The pieces are in `causes`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from clustersim import network as networks
from clustersim.assembling import Parts
from clustersim.causes import (
    CAUSES,
    causes_of,
    even_placement,
    even_popularity,
    even_sources,
    least_exchange,
    moe_seconds,
    ports_alone,
)
from clustersim.placement.replicas import chosen_slots
from clustersim.playing import play_all
from clustersim.results.placements import Step
from clustersim.sending import routings
from clustersim.types import Floats, Ints
from clustersim.workload import capacity as capacities


def causes_in(parts: Parts, steps: Sequence[Step], progress: Callable[[int, str], None]) -> dict[str, Floats]:
    """The columns of `CAUSE_COLUMNS`: the run played again without each cause, and without all."""
    seed, n, model, rule = parts.run.seed, parts.cluster.n_gpus, parts.run.model, parts.rule
    tokens, plan = parts.stream.steps, parts.plan

    def computed(step: int, layer: int) -> Ints:
        placed = plan.placements[step]
        protected = capacities.protected_tokens(capacities.stream(seed), rule, tokens[step].context)
        now = replace(parts, workload=tokens[step], placements=placed, protected=protected)
        kept = routings(now, rule, layer, tokens[step].choose(layer))[2]
        return chosen_slots(kept, placed[layer], parts.cluster)

    def without(names: Sequence[str]) -> Floats:
        changed, chosen, placements, limit = parts, tokens, plan.placements, rule
        if "popularity" in names:
            chosen = tuple(even_popularity(one, seed + 1000 * i, model.n_experts) for i, one in enumerate(chosen))
        if "placement" in names:                # what is computed is known by then: nothing more is dropped
            run = replace(parts.run, model=replace(model, n_experts=parts.room.n_slots))
            both = [even_placement(one, partial(computed, i), seed, plan.placements[i]) for i, one in enumerate(tokens)]
            chosen, placements = tuple(one for one, _ in both), tuple(placed for _, placed in both)
            changed, limit = replace(changed, run=run), rule.without_limit()
        if "source" in names:
            chosen = tuple(even_sources(one, n) for one in chosen)
        if "exchange" in names:
            changed = replace(changed, exchange=least_exchange)
        if "topology" in names:
            changed = replace(changed, cluster=ports_alone(parts.cluster), network=networks.bound)
        changed = replace(changed, stream=replace(parts.stream, steps=chosen))
        return moe_seconds([step.played for step in play_all(
            changed, replace(plan, placements=placements), limit, lambda fraction, what: None
        )])  # fmt: skip

    actual, times = moe_seconds([step.played for step in steps]), {}
    even = all(np.ptp(np.bincount(one.source, minlength=n)) == 0 for one in tokens)
    for i, cause in enumerate(CAUSES):
        progress(i, f"the same without {cause}")
        times[cause] = actual if cause == "source" and even else without([cause])
    return causes_of(actual, times, without(CAUSES))
