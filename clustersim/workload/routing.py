"""From a router's name and options to the choices of a workload: gives routers what they ask for, GPU by GPU. No drops."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim.model import Model
from clustersim.pick import bind, find, options_of
from clustersim.types import Choices, Floats, InputError, Ints, ScoreProcess, Workload
from clustersim.workload import balancing, routers
from clustersim.workload.deal import sequence_numbers
from clustersim.workload.routers.activation import Scores, activated
from clustersim.workload.sampler import BEYOND
from clustersim.workload.scores import experts_alone

BLIND = ("hash_table", "random", "round_robin")         # do not look at the scores
RUN = 16_384            # tokens whose scores are in memory at a time, or those of one GPU if it has more
SHORT_RUN = 1024        # the same for routers that take every token by itself and draw nothing: so few stay in the cache
BY_TOKEN = ("top_k", "group_limited")
BIAS: Mapping[str, Any] = {"rule": "none", "rate": 1e-3, "updates": 0, "tokens": 8192}

ONE_BY_ONE = {          # routers that rank tokens against each other, and what they do where these come one by one
    "expert_choice": None,
    "soft_moe": None,
    "mixture_of_depths": None,
    "base": {"method": "greedy"},       # fairseq, base_layer.py: evaluation takes the best expert
    "sinkhorn": {"balance": False},     # Megatron-LM, router.py: evaluation takes the plain top k
    "swipe": {"balance": False},        # FastMoE, swipe_gate.py: so does this
}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Router:
    """A router with its options, found to be on offer."""

    name: str                               # recorded: what the trace or the sampler says
    function: Callable[..., tuple[Ints, Floats]]        # its options bound
    wants: frozenset[str]                   # what it asks for beside scores: rng, bias, token_ids, ...
    options: Mapping[str, Any]
    bias: Mapping[str, Any]                 # rule, rate, updates, tokens of the closed loop
    notes: tuple[str, ...] = ()

    @property
    def extra(self) -> int:
        """Columns of scores beside those of the model's experts."""
        return {"mixture_of_depths": 1}.get(self.name, self._option("n_zero") or 0)

    @property
    def activation(self) -> str:
        """What it makes of scores before it adds a bias."""
        return "softmax" if self.name == "longcat" else self._option("score") or "none"

    def _option(self, key: str) -> Any:
        parameter = inspect.signature(self.function).parameters.get(key)
        return None if parameter is None else parameter.default


def router_from(name: str, options: Mapping[str, Any], model: Model, *, phase: str = "prefill") -> Router:
    """The router of that name, `model` for the one that the model was trained with, with the options of its config.

    Raises:
        InputError: no such router or option, a model without a router of its own, a router that cannot decode.
    """
    given, kind = dict(options), "router"
    bias = _bias(given.pop("bias", {}))
    if name == "recorded":
        return Router(name=name, function=_nothing, wants=frozenset(), options=given, bias=bias)
    if name == "model":
        if not isinstance(model.router, Mapping):
            raise InputError(f"model.router={model.router}: must be a group of keys, the name of a router and its options")
        if not model.router:
            raise InputError(f"router=model: model {model.name} names no router; choose one by name (clustersim list router)")
        given, kind = {**given, **model.router}, "model.router"
        name = str(given.pop("name", ""))
    function = find(routers, name, kind)
    takes = options_of(function).keys()
    if "k" in takes and given.get("k") is None:
        given["k"] = model.top_k
    notes: tuple[str, ...] = ()
    if phase == "decode" and name in ONE_BY_ONE:
        instead = ONE_BY_ONE[name]
        if instead is None:
            raise InputError(
                f"router={name}: ranks the tokens of a batch against each other, which decoding cannot "
                "(workload.phase=decode); use router=top_k or another router that takes tokens one by one"
            )
        given |= instead
        notes = (f"router={name} decodes as it is evaluated: {', '.join(f'{k}={v}' for k, v in instead.items())}",)
    bound = bind(kind, name, function, given)
    if bias["updates"] and "bias" not in takes:
        raise InputError(f"router.bias.updates={bias['updates']}: {name} takes no bias")
    if bias["updates"] and bias["rule"] == "quantile" and (bias["tokens"] * given.get("k", model.top_k)) % model.n_experts:
        raise InputError(
            f"router.bias.tokens={bias['tokens']}: times top-{given.get('k', model.top_k)} must be a multiple of the "
            f"{model.n_experts} experts of {model.name} for rule=quantile"
        )
    router = Router(name=name, function=bound, wants=frozenset(takes - given.keys()), options=given, bias=bias, notes=notes)
    if router.extra < 0:                # scores are drawn in as many columns before the router sees any
        raise InputError(f"router.n_zero={router.extra}: must be from 1 up")
    return router


def _nothing(scores: Scores) -> tuple[Ints, Floats]:
    raise AssertionError("recorded choices are not made anew")


def _bias(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise InputError(f"router.bias={given}: is a group of keys ({', '.join(BIAS)}); write router.bias.rule=sign")
    bias = {**BIAS, **given}
    if unknown := bias.keys() - {*BIAS, "active"}:
        raise InputError(f"router.bias.{min(unknown)}: there is no such key (known: active, {', '.join(BIAS)})")
    for key, least in (("updates", 0), ("tokens", 1)):
        if isinstance(bias[key], bool) or not isinstance(bias[key], int) or bias[key] < least:
            raise InputError(f"router.bias.{key}={bias[key]}: must be a whole number from {least} up")
    if bias["rule"] == "none":
        if bias["updates"]:
            raise InputError(f"router.bias.updates={bias['updates']}: needs a rule; write router.bias.rule=sign")
    else:
        rule_of(bias)
        if not isinstance(bias["rate"], int | float) or not 0 < bias["rate"] < math.inf:
            raise InputError(f"router.bias.rate={bias['rate']}: must be a number above 0")
    return bias


def rule_of(bias: Mapping[str, Any]) -> balancing.Rule:
    """The rule that moves a bias, from the keys under `router.bias`.

    Raises:
        InputError: no such rule, an option that it does not take.
    """
    options = {key: bias[key] for key in ("rate", "active") if bias.get(key) is not None}
    return bind("router.bias", bias["rule"], find(balancing, bias["rule"], "router.bias.rule"), options)


def rerouted(
    workload: Workload, router: Router, model: Model, seed: int, *, name: str, near: Callable[[int], NDArray[np.bool_]]
) -> Workload:
    """The workload with choices by `router` on its scores; as it is where the router is `recorded`.

    A router sees the tokens of one GPU at a time, as in the frameworks, and has a random stream of its own for each
    (seed, layer, GPU). Choices are made when a layer is asked for and not kept.

    Args:
        name: what an error calls where the scores come from, for example "trace=tiny".
        near: GPU -> bool [experts], experts of which its node holds a copy.

    Raises:
        InputError: the workload has no scores, too few columns of them, or no token ids, where the router needs them.
    """
    if router.name == "recorded":
        return workload
    process = _process(workload, router, model, name)
    if "token_ids" in router.wants and workload.token_ids is None:
        raise InputError(f"router={router.name}: goes by token ids, and {name} has none; use trace=sampled")
    begin = np.searchsorted(workload.source, np.unique(workload.source))
    end = np.append(begin[1:], workload.source.size)
    token_ids = workload.token_ids() if "token_ids" in router.wants and workload.token_ids else None

    @cache
    def bias(layer: int) -> Floats | None:
        return settled_bias(process, router, model, layer)

    def route(layer: int, first: int, last: int, scores: Scores) -> tuple[Ints, Floats]:
        gpu = int(workload.source[first])
        given: dict[str, Callable[[], Any]] = {
            "rng": lambda: np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(layer, gpu, 1)))),
            "bias": lambda: bias(layer),
            "token_ids": lambda: None if token_ids is None else token_ids[first:last],
            "sequence": lambda: sequence_numbers(workload.context[first:last]),
            "layer": lambda: layer,
            "near": lambda: near(gpu),
        }
        return router.function(scores, **{key: make() for key, make in given.items() if key in router.wants})

    runs = _any_gpu if router.name in BY_TOKEN else _by_gpu

    def choose(layer: int) -> Choices:
        ids, weights = _joined((route(layer, *run) for run in runs(partial(process, layer), begin, end)), workload.source.size)
        scores = None if workload.scores is None else partial(experts_alone, process, layer, model.n_experts)
        return Choices(ids=ids, weights=weights, scores=scores)

    return replace(workload, choose=choose, period=None, notes=(*workload.notes, *router.notes, *_notes(router)))


def _process(workload: Workload, router: Router, model: Model, name: str) -> ScoreProcess:
    """The scores that the router is given."""
    if workload.scores is None:
        if router.name not in BLIND:
            raise InputError(
                f"router={router.name}: {name} has expert ids only, which can be limited and placed but not routed anew; "
                "use router=recorded, trace=sampled, or a trace recorded with scores"
            )
        return lambda layer, first, last: np.broadcast_to(np.float32(0), (last - first, model.n_experts))
    columns = workload.scores(0, 0, 1).shape[1]
    if columns != model.n_experts + router.extra:
        raise InputError(
            f"router={router.name}: needs scores in {model.n_experts + router.extra} columns, {router.extra} of them beside the "
            f"model's experts, and {name} has {columns}; use trace=sampled"
        )
    return workload.scores


def settled_bias(process: ScoreProcess, router: Router, model: Model, layer: int) -> Floats | None:
    """The bias of a layer after the closed loop's updates, float [columns]; None without any.

    The loop sees tokens of its own, beyond any pass: those from BEYOND on.
    """
    if router.bias["rule"] == "none" or not router.bias["updates"]:
        return None
    *_, (bias, _, _) = bias_steps(process, router, model, layer)
    return bias


def bias_steps(
    process: ScoreProcess, router: Router, model: Model, layer: int
) -> Iterator[tuple[Floats, Ints, Ints]]:
    """`balancing.steps` of a layer: (bias, counts, ids) before each update and after the last."""
    return balancing.steps(**loop_of(process, router, model, layer))


def loop_of(process: ScoreProcess, router: Router, model: Model, layer: int) -> dict[str, Any]:
    """The arguments of `balancing.steps` and `balancing.settle` for a layer of a score process."""
    return {
        "scores": lambda first, last: process(layer, BEYOND + first, BEYOND + last),
        "route": lambda scores, bias: router.function(scores, bias=bias)[0],
        "rule": rule_of(router.bias),
        "n_experts": model.n_experts,
        "k": router.options.get("k", model.top_k),
        "tokens": router.bias["tokens"],
        "updates": router.bias["updates"],
        "activate": lambda scores: activated(scores, router.activation),
    }


def _by_gpu(
    scores: Callable[[int, int], Scores], begin: Ints, end: Ints
) -> Iterator[tuple[int, int, Scores]]:
    """(first, last, scores) of every GPU's tokens; scores are made for several GPUs at a time."""
    gpu = 0
    while gpu < begin.size:
        until = max(gpu + 1, int(np.searchsorted(end, begin[gpu] + RUN, side="right")))
        first = int(begin[gpu])
        run = scores(first, int(end[until - 1]))
        for one in range(gpu, until):
            yield int(begin[one]), int(end[one]), run[begin[one] - first : end[one] - first]
        gpu = until


def _any_gpu(
    scores: Callable[[int, int], Scores], begin: Ints, end: Ints
) -> Iterator[tuple[int, int, Scores]]:
    """The same in short runs, whosever tokens they are."""
    for first in range(0, int(end[-1]) if end.size else 0, SHORT_RUN):
        last = min(first + SHORT_RUN, int(end[-1]))
        yield first, last, scores(first, last)


def _joined(parts: Iterable[tuple[Ints, Floats]], n_tokens: int) -> tuple[Ints, Floats]:
    """Choices of all tokens under each other, the narrower filled up with -1; parts are not kept."""
    ids, weights = np.empty((n_tokens, 1), np.int64), np.empty((n_tokens, 1))
    at = 0
    for part, weight in parts:
        if part.shape[1] > ids.shape[1] or at == 0:
            ids, weights = _widened(ids, at, part.shape[1], -1), _widened(weights, at, part.shape[1], 0.0)
        rows = slice(at, at + len(part))
        for out, given, nothing in ((ids, part, -1), (weights, weight, 0.0)):
            out[rows, : part.shape[1]] = given
            out[rows, part.shape[1] :] = nothing
        at += len(part)
    assert at == n_tokens, "a token has no choices"
    return ids, weights


def _widened(values: NDArray[Any], n: int, width: int, nothing: float) -> NDArray[Any]:
    """The first n rows in an array of as many rows but more columns."""
    wider = np.empty((len(values), max(width, 1)), values.dtype)
    wider[:n, : values.shape[1]] = values[:n]
    wider[:n, values.shape[1] :] = nothing
    return wider


def _notes(router: Router) -> tuple[str, ...]:
    """What a reader has to know of choices made by this router."""
    notes = []
    if router.name in ("expert_choice", "base", "sinkhorn", "soft_moe", "swipe"):
        notes.append(f"router={router.name} balances the tokens of each GPU by themselves, not those of all GPUs together")
    if router.name == "round_robin":
        notes.append("router=round_robin: a token's experts are neighbours, on fewer GPUs and nodes than a learned router's")
    if router.name == "soft_moe":
        notes.append("router=soft_moe: what travels are its slots, mixtures of all tokens of a GPU")
    if router.bias["updates"]:
        notes.append(
            f"the bias comes from {router.bias['updates']} updates by rule={router.bias['rule']} on {router.bias['tokens']:,} "
            "tokens each; a trace's come again and again"
        )
    if router.name == "mixture_of_depths":
        notes.append("router=mixture_of_depths: tokens that pass a layer by still attend in it here")
    return tuple(notes)
