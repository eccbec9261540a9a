"""Who is left behind when an expert is full: what a capacity rule is, and what it does to the choices of one layer. No clock.

The policies (who stays) are in `capacity_policies`, the formulas (how many places) in `capacity_sizes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.pick import bind, did_you_mean, find, options_of
from clustersim.types import Choices, Floats, InputError, Ints
from clustersim.workload import capacity_policies, capacity_sizes
from clustersim.workload.capacity_policies import ELSEWHERE, Contest
from clustersim.workload.deal import sequence_numbers

_CHOICES = {"per": ("expert", "gpu"), "scope": ("source", "group", "global"), "where": ("source", "expert")}
_OWN = ("factor", "rule", "drop", *_CHOICES, "group_tokens", "pad", "pad_multiple", "renormalise", "protect")

_KEY = 2**32 - 1        # ends the key of a rule's random streams: above all that samplers and routers number


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Rule:
    """A capacity rule, judged: the keys of a file in conf/capacity."""

    factor: float | None                # None: no limit
    size: Callable[..., Ints]           # how many places: a function of capacity_sizes, its options bound
    policy: Callable[..., Ints]         # who gets them: a function of capacity_policies, its options bound
    per: str                            # what is full: an expert, or a gpu with all its experts
    scope: str                          # whose tokens compete: one source GPU's, a local group's, or all (global)
    where: str                          # before dispatch (source), or on arrival (expert): then dropped choices travel
    group_tokens: int | None            # tokens of a local group at most
    pad: bool                           # every buffer is filled up to the capacity
    pad_multiple: int                   # rows are filled up to a multiple of this
    renormalise: bool                   # a token's kept gate weights are divided by their sum
    protect: float                      # share of the sequences that are never dropped

    @property
    def limits(self) -> bool:
        """Whether anything differs from the same run without a capacity."""
        return self.factor is not None or self.pad

    @property
    def sends_padding(self) -> bool:
        """Whether rows are filled up before they travel."""
        return self.where == "source" and (self.pad or self.pad_multiple > 1)

    def without_limit(self) -> Rule:
        """The same, dropless and without the padding that fixed buffers need."""
        return replace(self, factor=None, pad=False)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Limited:
    """What a rule did to the choices of one layer."""

    assigned: Ints                      # [tokens, top_k] logical expert; -1 none or dropped
    room: Ints | None                   # [pools, units] places; None without a limit
    gpu_of_pool: Ints | None            # [pools] source GPU; None where all GPUs share one pool


def rule_from(config: Mapping[str, Any]) -> Rule:
    """The rule that the group `capacity` of a config describes.

    Keys beyond those of every rule are options of the formula (`rule`) or of the policy (`drop`).

    Raises:
        InputError: an unknown name or key, a value that cannot be, or keys that exclude each other.
    """
    size = find(capacity_sizes, config["rule"], "capacity.rule")
    policy = find(capacity_policies, config["drop"], "capacity.drop")
    options = {key: value for key, value in config.items() if key not in _OWN}
    taken = {key: [f for f in (size, policy) if key in options_of(f)] for key in options}
    for key in options:
        if not taken[key]:
            known = (*_OWN, *options_of(size), *options_of(policy))
            raise InputError(f"capacity.{key}: there is no such key{_near(key, known)} (known: {', '.join(known)})")
    size, policy = (
        bind("capacity", config[name], f, {key: value for key, value in options.items() if f in taken[key]})
        for name, f in (("rule", size), ("drop", policy))
    )
    for key, allowed in _CHOICES.items():
        if config[key] not in allowed:
            near = did_you_mean(str(config[key]), allowed)
            raise InputError(f"capacity.{key}={_shown(config[key])}: must be {' or '.join(allowed)}{near}")
    rule = Rule(
        factor=_factor(config["factor"]), size=size, policy=policy, per=config["per"], scope=config["scope"],
        where=config["where"], group_tokens=_whole("group_tokens", config["group_tokens"], or_null=True),
        pad=_flag("pad", config["pad"]), pad_multiple=_whole("pad_multiple", config["pad_multiple"]) or 1,
        renormalise=_flag("renormalise", config["renormalise"]), protect=_share("protect", config["protect"]),
    )  # fmt: skip
    _check_together(rule, str(config["drop"]))
    if rule.factor is not None:         # what a formula does not like is said now, not in the first layer
        rule.size(np.full(1, 1 << 40), 1, 1 << 10, rule.factor, 1)
    return rule


def limit(
    rng: np.random.Generator, rule: Rule, choices: Choices, *, source: Ints, index: Ints, n_gpus: int, n_experts: int, top_k: int,
    gpu_of_choice: Ints | None = None, protected: NDArray[np.bool_] | None = None,
) -> Limited:  # fmt: skip
    """What becomes of the choices of one layer.

    Args:
        source: int [tokens], GPU that holds the token.
        index: int [tokens], place in its GPU's batch, from 0.
        top_k: choices of a token that the formula counts on; some may have fewer or, where k varies, more.
        gpu_of_choice: int [tokens, top_k], GPU that would compute each choice, -1 none; only read for `per: gpu`.
        protected: bool [tokens], never dropped; None: nobody.

    Raises:
        InputError: the policy needs weights or scores that are not known, or they are no numbers.
    """
    asked = choices.ids
    if rule.factor is None:
        return Limited(assigned=asked, room=None, gpu_of_pool=None)
    if choices.weights is not None and np.isnan(choices.weights[asked >= 0]).any():
        token = int(np.flatnonzero((np.isnan(choices.weights) & (asked >= 0)).any(axis=1))[0])
        raise InputError(f"capacity.factor={rule.factor}: a gate weight of token {token} is nan; weights must be numbers")
    if rule.per == "gpu":
        assert gpu_of_choice is not None
        unit, n_units = gpu_of_choice, n_gpus
    else:
        unit, n_units = asked, n_experts
    pool, gpu_of_pool = _pools(rule, source, index, n_gpus)
    n_pools = 1 if gpu_of_pool is None else gpu_of_pool.size
    tokens = np.bincount(pool, minlength=n_pools)
    load = np.bincount((pool[:, None] * n_units + unit)[unit >= 0], minlength=n_pools * n_units)
    places = rule.size(tokens, top_k, n_units, rule.factor, int(load.max(initial=0)))
    room = np.ascontiguousarray(np.broadcast_to(places.reshape(n_pools, -1), (n_pools, n_units)))
    contest = Contest(
        asked=asked, weights=choices.weights, scores=choices.scores, pool=pool, unit=unit, room=room, protected=protected
    )
    return Limited(assigned=rule.policy(rng, contest), room=room, gpu_of_pool=gpu_of_pool)


def stream(seed: int, *layer: int) -> np.random.Generator:
    """What a rule draws from: one stream for a run, and one for each layer."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(*layer, _KEY)))


def protected_tokens(rng: np.random.Generator, rule: Rule, context: Ints) -> NDArray[np.bool_] | None:
    """Tokens of the sequences that are never dropped, bool [tokens], drawn once for all layers; None when there are none.

    DeepSeek-V2 (arXiv 2405.04434, section 2.2.4) never drops those of about a tenth of the sequences.

    Args:
        context: int [tokens], tokens that each looks at (`sequence_numbers`).
    """
    if not rule.protect:
        return None
    sequence = sequence_numbers(context)
    return np.asarray((rng.random(int(sequence.max(initial=-1)) + 1) < rule.protect)[sequence])


def applied_weights(weights: Floats, asked: Ints, assigned: Ints, *, renormalise: bool) -> Floats:
    """Gate weights as the combine applies them, float [tokens, top_k]: 0 where dropped, summing to 1 where `renormalise`.

    DeepSpeed's top-2 and top-k gates renormalise, Megatron-LM's and Tutel's do not. With top-1 routing nobody does: the
    weight would always be 1. A choice that went to another expert keeps the weight of the one that it asked for.
    """
    if assigned is asked and not renormalise and asked.min(initial=0) >= 0:
        return weights
    kept: Floats = np.where((asked >= 0) & (assigned >= 0), weights, 0.0)
    if not renormalise or asked.shape[1] == 1:
        return kept
    total = kept.sum(axis=1, keepdims=True)
    share: Floats = np.divide(kept, total, out=np.zeros_like(kept), where=total > 0)
    return share


def _pools(rule: Rule, source: Ints, index: Ints, n_gpus: int) -> tuple[Ints, Ints | None]:
    """The pool of every token, and the GPU of every pool (None: one pool for all).

    A GPU's tokens fall into as few groups as hold at most `group_tokens` each, in order and as even as they come.
    """
    if rule.scope == "global":
        return np.zeros_like(source), None
    if rule.scope == "source":
        return source, np.arange(n_gpus)
    assert rule.group_tokens is not None
    tokens = np.bincount(source, minlength=n_gpus)
    groups = -(-tokens // rule.group_tokens)
    begin = np.cumsum(groups) - groups
    return begin[source] + index * groups[source] // tokens[source], np.repeat(np.arange(n_gpus), groups)


def _check_together(rule: Rule, drop: str) -> None:
    if rule.scope == "group" and rule.group_tokens is None:
        raise InputError("capacity.scope=group: say how large a group is: capacity.group_tokens=1024")
    if rule.pad and rule.per == "gpu":
        raise InputError("capacity.pad=true: fixed buffers are an expert's, and capacity.per=gpu counts the tokens of a GPU")
    if rule.pad and rule.scope == "global" and rule.where == "source":
        raise InputError(
            "capacity.pad=true: with capacity.scope=global a source GPU does not know how full an expert is; "
            "capacity.where=expert pads on arrival"
        )
    if drop in ELSEWHERE and (rule.per == "gpu" or rule.where == "expert"):
        wrong = "per=gpu" if rule.per == "gpu" else "where=expert"
        raise InputError(f"capacity.drop={drop}: finds another expert before dispatch; not with capacity.{wrong}")


def _near(key: str, known: tuple[str, ...]) -> str:
    near = did_you_mean(key, known)
    return near.replace("mean ", "mean capacity.") if near else ""


def _shown(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)


def _factor(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"capacity.factor={_shown(value)}: must be a number above 0, for example 1.25 (null: no limit)")
    return value


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"capacity.{key}={_shown(value)}: must be true or false")
    return value


def _whole(key: str, value: Any, *, or_null: bool = False) -> int | None:
    if value is None and or_null:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"capacity.{key}={_shown(value)}: must be a whole number from 1 up{' or null' if or_null else ''}")
    return value


def _share(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise InputError(f"capacity.{key}={_shown(value)}: must be a share, from 0 to below 1")
    return float(value)
