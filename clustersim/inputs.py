"""From a run's config to what is played: the tokens of every step, their router, and the placements that serve them. No clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clustersim import placement as placements
from clustersim.cluster import Cluster
from clustersim.config import Run, whole
from clustersim.deciding import (
    Place,
    Plan,
    Setting,
    decided,
    loads_seen,
    looks_at_load,
    nothing_seen,
    older,
    periodic_keys,
    plan_once,
    plan_periodic,
    steps_seen,
    with_replica,
)
from clustersim.engine.timing import Timing
from clustersim.identity import trace_digest, trace_path
from clustersim.pick import bind, did_you_mean, find, pick
from clustersim.placement.past import no_room, room_for
from clustersim.types import InputError, Ints, Trace, Transfers, Workload
from clustersim.units import format_bytes
from clustersim.workload import source
from clustersim.workload.loads import read_loads
from clustersim.workload.routing import Router, rerouted
from clustersim.workload.serving import with_lengths
from clustersim.workload.streams import Recorded, Stream, passes_of, rerouted_stream, shared_out, stream_of
from clustersim.workload.trace_source import recorded_tokens
from clustersim.workload.uneven import sizes_of, trimmed, with_prompts


def setting_of(run: Run, cluster: Cluster, exchange: Callable[..., Transfers], timing: Timing) -> tuple[Setting, Place]:
    """What the placement may know of the machine, and the placement.

    Raises:
        InputError: no such placement or replica rule, slots that cannot be, an expert that no GPU can hold.
    """
    model = run.model
    name, options = run.options("placement")
    replica, slots, spare = (options.pop(key) for key in ("replica", "slots", "spare"))
    find(placements.replicas, replica, "placement.replica")        # a misspelt rule is found now, not in the first layer
    if run.group.inside:
        _check_everywhere(run)
        slots, replica = model.n_experts * cluster.n_gpus, "nearest"
    room = room_for(slots, spare, model.n_experts, cluster.node_of) if model.n_experts else no_room(cluster.node_of)
    if (weights := model.expert_params * model.expert_weight_bytes) > cluster.gpu.memory:
        raise InputError(
            f"model={model.name}: no GPU of {run.topology} can hold an expert: its weights are {format_bytes(weights)}, "
            f"the memory of a GPU is {format_bytes(cluster.gpu.memory)}"
        )
    setting = Setting(
        model=model, cluster=cluster, room=room, exchange=exchange, timing=timing, replica=replica, seed=run.seed,
    )
    return setting, with_replica(pick(placements, name, **options), replica)


def _check_everywhere(run: Run) -> None:
    """InputError where something decides on the place of experts of which every GPU has its part."""
    placement, decide = run.config["placement"], run.config["decide"]["name"]
    everywhere = f"parallel.expert_tensor={run.group.tensor}: every GPU has a part of every expert"
    if placement["name"] != "contiguous" or placement["slots"] is not None or placement["spare"]:
        raise InputError(f"{everywhere}; use placement=contiguous placement.slots=null placement.spare=0")
    if decide != "once":
        raise InputError(f"{everywhere}, and none moves; use decide=once")


def stream_from(run: Run, setting: Setting, place: Place, router: Router) -> Stream:
    """The steps, their past and what the router says of them.

    Raises:
        InputError: a trace that does not fit, or a router that minds a placement that minds the router.
    """
    tensor, per_sequence = run.group.tensor, run.decoding.per_sequence if run.decoding else 1
    groups = setting.cluster.n_gpus // tensor
    sizes = None if run.uneven.even else sizes_of(run.uneven, run.group_tokens // per_sequence, groups, run.seed)
    if sizes is not None:
        run = _widest(run, int(sizes.max()), per_sequence)
    if not run.model.n_experts:
        stream = _uneven(run, without_experts(run, router, groups), sizes, per_sequence)
        return shared_out(in_flight(run, stream, groups), tensor, per_sequence)
    if run.config["trace"]["name"] in ("sampled", "balanced") and run.model.zero_experts not in (0, router.extra):
        raise InputError(
            f"router={router.name}: chooses among {router.extra} experts without weights, and model={run.model.name} has "
            f"{run.model.zero_experts}; use router=longcat router.n_zero={run.model.zero_experts} trace=sampled"
        )
    stream = _uneven(run, _recorded(run, groups, router.extra, looks_at_load(place)), sizes, per_sequence)
    near = _near(setting, place, tensor) if "near" in router.wants else _nobody_near
    label = f"trace={run.config['trace']['name']}"
    stream = rerouted_stream(stream, lambda i, step: rerouted(step, router, run.model, run.seed + i, name=label, near=near))
    return shared_out(in_flight(run, stream, groups), tensor, per_sequence)


def _widest(run: Run, batch: int, per_sequence: int) -> Run:
    """The run with the largest batch on every GPU; what is too much is taken off."""
    decoding = run.decoding if run.decoding is None else replace(run.decoding, sequences=batch)
    return replace(run, group_tokens=batch * per_sequence, decoding=decoding)


def _uneven(run: Run, stream: Stream, sizes: Ints | None, per_sequence: int) -> Stream:
    """The stream with batches of these sizes, and prompts as long as asked.

    Raises:
        InputError: what is asked for is made for one pass over made-up prompts, or `trimmed` cannot.
    """
    spread, trace = run.uneven.prompt_spread, run.config["trace"]["name"]
    asked = f"workload.prompt_spread={spread}" if spread else "workload.batch_spread, workload.batches"
    if spread and trace not in ("sampled", "balanced"):
        raise InputError(f"{asked}: trace={trace} has sequences of its own; use trace=sampled or balanced")
    if run.decoding is None and (spread or sizes is not None) and len(stream.steps) > 1:
        raise InputError(f"{asked}: prompts that go on from pass to pass are all of one length on all GPUs; use workload.steps=1")
    if spread:
        mean = int(run.config["trace"]["sequence"])
        stream = replace(stream, steps=tuple(with_prompts(step, mean, spread, run.seed) for step in stream.steps))
    if sizes is None:
        return stream
    cut = partial(trimmed, tokens=sizes * per_sequence)
    return replace(stream, steps=tuple(map(cut, stream.steps)), past=tuple(map(cut, stream.past)))


def in_flight(run: Run, stream: Stream, n_gpus: int) -> Stream:
    """The stream as it is in prefill; in decoding with the lengths of its sequences."""
    if run.decoding is None:
        return stream
    notes = stream.notes
    if run.decoding.draft and run.config["trace"]["name"] in ("tiny", "file"):
        notes += ("the trace gives a token per sequence and step: drafts choose experts as tokens of other sequences do",)
    return replace(stream, steps=with_lengths(stream.steps, run.decoding, n_gpus, run.seed), notes=notes)


def plan_from(run: Run, setting: Setting, place: Place, stream: Stream) -> tuple[Plan, Stream]:
    """The placements of the steps that are played, and the stream without those that are not.

    Raises:
        InputError: keys of `decide` that cannot be, a load file of another model, or what the placement raises.
    """
    name, options = run.options("decide")
    if name not in (known := ("once", "load_file", "periodic")):
        raise InputError(f"decide.name={name}: there is no such rule{did_you_mean(str(name), known)} (known: {', '.join(known)})")
    if not run.model.n_experts:
        return plan_once(setting, place, nothing_seen(setting), len(stream.steps)), stream
    if name == "periodic":
        keys = periodic_keys(options, len(stream.steps))
        first = find(placements, str(keys["first"]), "decide.first")
        if looks_at_load(first):
            raise InputError(f"decide.first={keys['first']}: there is no past yet; contiguous, round_robin or random would do")
        plan = plan_periodic(setting, place, stream.steps, **{**keys, "first": first})
        return plan, replace(stream, steps=stream.steps[keys["warmup"] :])
    if not looks_at_load(place):
        seen = nothing_seen(setting)
    elif name == "load_file":
        seen = loads_seen(read_loads(str(options["path"]), run.model))
    else:
        seen = steps_seen(setting, stream.past)
        seen = older(setting, seen, drift) if (drift := _drift(options)) else seen
    return plan_once(setting, place, seen, len(stream.steps)), stream


@lru_cache(maxsize=2)
def _trace(path: Path, digest: str | None, tokens: int | None) -> Trace | Recorded:
    """The trace at `path`, read once for as long as it holds the same; the jobs of a sweep share it."""
    return recorded_tokens(path, tokens)


def _recorded(run: Run, n_gpus: int, extra: int, looks_back: bool) -> Stream:
    """The steps as they are recorded or drawn; `extra` columns of scores beside the experts', `looks_back`: a past is needed."""
    name, options = run.options("trace")
    if run.decoding is not None and "sequence" in options:
        options["sequence"] = run.decoding.per_sequence         # neighbours in a batch belong together in prefill only
    decide = run.config["decide"]
    apart = decide["name"] == "once" and (looks_back or decide["apart"])
    keys = _steps(run)
    if name in ("tiny", "file"):
        path = trace_path(run.config["trace"])
        assert path is not None
        label = "trace=tiny" if name == "tiny" else f"trace.path={path}"
        recorded = _trace(path, trace_digest(run.config["trace"]), _first_tokens(options.get("tokens")))
        return stream_of(recorded, run.model, n_gpus, run.group_tokens, apart=apart, name=label, seed=run.seed, **keys)
    if name == "sampled":
        draw = bind("trace", name, source.from_sampler, options)

        def make(seed: int) -> Workload:
            made: Workload = draw(run.model, n_gpus, run.group_tokens, seed, extra)
            return made

        return passes_of(make, run.model, run.seed, apart=apart, sequence=options.get("sequence"), **keys)
    if name == "balanced":
        deal = bind("trace", name, source.from_balanced, options)

        def even(seed: int) -> Workload:
            dealt: Workload = deal(run.model, n_gpus, run.group_tokens, seed)
            return dealt

        return passes_of(even, run.model, run.seed, apart=apart, sequence=options["sequence"], **keys)
    if name == "live":
        if run.causes:
            raise InputError("causes=true: plays a pass again with other choices, and trace=live makes its own; use causes=false")
        live = find(source, str(options.pop("source")), "trace.source")       # by name: a run without it needs no torch
        made = bind("trace", name, live, options)(run.model, n_gpus, run.group_tokens, run.seed)
        return passes_of(lambda seed: made, run.model, run.seed, apart=False, **{**keys, "steps": _one_pass(keys, apart)})
    known = ("tiny", "file", "live", "sampled", "balanced")
    raise InputError(f"trace.name={name}: there is no such trace{did_you_mean(str(name), known)} (known: {', '.join(known)})")


def without_experts(run: Run, router: Router, n_gpus: int) -> Stream:
    """The steps of a model without routed experts: of a trace its sequences count, of what is made up their length.

    Raises:
        InputError: a key that only experts have a use for.
    """
    name, options = run.options("trace")
    model = run.model
    asked = {
        f"router={router.name}": router.name != "recorded",
        f"capacity.factor={run.capacity_factor}": run.capacity_factor is not None,
        "causes=true": run.causes, f"trace={name}": name == "live", "trace.counts=true": bool(options.get("counts")),
        f"decide={run.config['decide']['name']}": run.config["decide"]["name"] != "once",
    }  # fmt: skip
    for key, given in asked.items():
        if given:
            raise InputError(f"{key}: model={model.name} has no routed experts for it; leave it out")
    note = f"{model.name} has no routed experts: trace, placement and exchange say nothing but how long sequences are"
    keys = _steps(run)
    if name in ("tiny", "file"):
        path = trace_path(run.config["trace"])
        assert path is not None
        recorded = _trace(path, trace_digest(run.config["trace"]), _first_tokens(options.get("tokens")))
        like = replace(model, n_experts=recorded.n_experts, top_k=recorded.top_k)       # choices that nobody asks for
        label = "trace=tiny" if name == "tiny" else f"trace.path={path}"
        stream = stream_of(recorded, like, n_gpus, run.group_tokens, name=label, seed=run.seed, **keys)
    else:
        even = source.from_balanced(model, n_gpus, run.group_tokens, sequence=options["sequence"])
        stream = passes_of(lambda seed: even, model, run.seed, sequence=options["sequence"], **keys)
    said = (text for text in stream.notes if "MoE layers" not in text and "layers are" not in text)
    return replace(stream, notes=(note, *said))


def _steps(run: Run) -> dict[str, Any]:
    """How many steps, and how a trace is dealt: the default of decoding is for traces, and made-up tokens need no deal."""
    name, workload = run.config["trace"]["name"], run.config["workload"]
    keys = {key: workload[key] for key in ("steps", "deal", "domain_steps")}
    made_up = name not in ("tiny", "file") and run.decoding is not None and keys["deal"] == "batched"
    return keys | ({"deal": "sequences"} if made_up else {})


def _drift(options: Mapping[str, Any]) -> float:
    """How far loads have moved since a placement was decided."""
    drift = options.get("drift", 0.0)
    if isinstance(drift, bool) or not isinstance(drift, int | float) or not 0 <= drift < 1:
        raise InputError(f"decide.drift={drift}: must be a number from 0 up to 1")
    return float(drift)


def _first_tokens(value: Any) -> int | None:
    """How many tokens of a trace are read; null: all."""
    return None if value is None else whole("trace.tokens", value, least=1)


def _one_pass(keys: dict[str, Any], apart: bool) -> int:
    if keys["steps"] != 1 or apart:
        raise InputError("trace=live: plays one pass, and has no past; workload.steps=1 and a placement that looks at no load")
    return 1


def _near(setting: Setting, place: Place, tensor: int) -> Callable[[int], NDArray[np.bool_]]:
    """Group of GPUs -> bool [experts], those of which its node holds a copy, for a router that minds it."""
    if looks_at_load(place):
        raise InputError(
            f"placement: is decided on where tokens of {setting.model.name} go, and the router decides that by where experts "
            "are; take placement=contiguous or round_robin"
        )
    placed = decided(setting, place, nothing_seen(setting), None)
    if any((one.expert_of != placed[0].expert_of).any() for one in placed):
        raise InputError("placement: differs between layers, and the router minds one; take placement=contiguous or round_robin")

    def near(group: int) -> NDArray[np.bool_]:
        gpu = group * tensor
        held = np.zeros(setting.model.n_experts, bool)
        held[placed[0].expert_of[setting.cluster.node_of[placed[0].gpu_of] == setting.cluster.node_of[gpu]]] = True
        return held

    return near


def _nobody_near(gpu: int) -> Any:
    raise AssertionError("asked for by a router that does not mind where experts are")
