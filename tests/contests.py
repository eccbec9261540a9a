"""Choices that compete for places, and what a capacity policy makes of them."""

from __future__ import annotations

import numpy as np
import yaml

from clustersim.places import PACKAGE
from clustersim.workload import capacity_policies
from clustersim.workload.capacity import rule_from
from clustersim.workload.capacity_policies import Contest

NO_RNG = None           # for policies that draw nothing


def contest(asked, room, *, weights=None, scores=None, source=None, n_experts=None, protected=None):
    """Tokens [tokens, top_k] at `room` places per expert: one number, one per pool, or [pools, experts]."""
    asked = np.asarray(asked)
    room = np.asarray(room) if np.ndim(room) == 2 else np.reshape(room, (-1, 1))
    n_experts = n_experts or (room.shape[1] if room.shape[1] > 1 else int(asked.max(initial=0)) + 1)
    room = np.broadcast_to(room, (len(room), n_experts))
    pool = np.zeros(len(asked), int) if source is None else np.asarray(source)
    return Contest(
        asked=asked, weights=weights, scores=None if scores is None else lambda first, last: scores[first:last], pool=pool,
        unit=asked, room=np.ascontiguousarray(room), protected=protected,
    )


def assigned(policy, *args, rng=NO_RNG, options=None, **kwargs):
    """What the policy of this name makes of a contest."""
    return getattr(capacity_policies, policy)(rng, contest(*args, **kwargs), **(options or {}))


PRESETS = sorted((PACKAGE / "conf" / "capacity").glob("*.yaml"))


def rule(preset="megatron", **keys):
    """A rule by the name of its file, with some keys changed; as `capacity=PRESET capacity.KEY=VALUE`."""
    return rule_from({**yaml.safe_load((PACKAGE / "conf" / "capacity" / f"{preset}.yaml").read_text()), **keys})
