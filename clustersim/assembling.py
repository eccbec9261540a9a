"""The parts of a run, made from its config and found to fit each other. Plays nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from clustersim import exchange as exchanges
from clustersim import network as networks
from clustersim.cluster import Cluster, build_cluster
from clustersim.config import Run, whole
from clustersim.deciding import Plan
from clustersim.engine import schedules, timing
from clustersim.engine.collectives import wires_of
from clustersim.engine.memory import Memory
from clustersim.engine.schedules import Schedule, with_kernels
from clustersim.engine.tensor_groups import TensorGroups
from clustersim.engine.timing import Timing
from clustersim.exchange.software import CALLED, SmSeconds, beyond, equipped, sm_seconds, sms_held, wait_beside
from clustersim.fitting import check_memory, memory_of
from clustersim.inputs import plan_from, setting_of, stream_from
from clustersim.pick import bind, find, pick
from clustersim.placement.past import Room
from clustersim.results.timeline import Recorder
from clustersim.types import InputError, Placement, Workload
from clustersim.units import format_seconds
from clustersim.workload import capacity as capacities
from clustersim.workload.routing import Router, router_from
from clustersim.workload.streams import Stream

MEASURED_BATCH = 4096           # tokens of a micro-batch beside which waiting was measured (deepseek-ai/profile-data, train.json)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Parts:
    """The parts of a run, made from its config and found to fit."""

    run: Run
    cluster: Cluster
    stream: Stream
    plan: Plan
    groups: TensorGroups                    # GPUs that share attention
    room: Room
    workload: Workload                      # of the step in hand
    placements: tuple[Placement, ...]       # of its MoE layers
    exchange: Callable[..., Any]
    network: Callable[..., Any]
    timing: Timing
    beside: Timing | None            # the same while an exchange holds SMs; None: it holds none, or nothing overlaps
    schedule: Schedule
    sm_seconds: SmSeconds | None            # of the exchange's kernels, where they are operations of their own
    rule: capacities.Rule
    top_k: int                              # choices of a token, as a capacity formula counts them
    protected: Any                          # bool [tokens] that no capacity drops, or None
    memory: Memory                          # what the GPUs hold
    recorder: Recorder | None               # of the first step, when a time line is asked for
    beyond: tuple[str, ...]                 # what is used outside the range that it was calibrated in


def assemble(run: Run) -> Parts:
    """The parts that a run's config names.

    Raises:
        InputError: a name, option or value that cannot be, parts that do not go together, or more memory than the GPUs have.
    """
    config, model = run.config, run.model
    cluster = _cluster(run.topology, json.dumps(config["topology"]))
    exchange_name, exchange_options, exchange = _exchange(run)
    groups = TensorGroups(
        group=run.group, wires=wires_of(cluster) if run.group.tensor > 1 else None,
        n_gpus=run.group.of(cluster.n_gpus).gpus,
    )  # fmt: skip
    cluster = equipped(exchange_name, exchange_options, cluster)
    name, options = run.options("compute")
    timed = bind("compute", name, find(timing, name, "compute"), options)(model, cluster.gpu)
    setting, place = setting_of(run, cluster, exchange, timed)
    schedule = _schedule(run)
    name, options = run.options("router")
    router = router_from(name, options, run.model, phase=run.config["workload"]["phase"])
    rule = capacities.rule_from(config["capacity"])
    if config["trace"].get("counts"):
        _check_counts(router, rule, exchange_name, setting.room.n_slots, model.n_experts, run.causes)
    stream = stream_from(run, setting, place, router)
    plan, stream = plan_from(run, setting, place, stream)
    network_name, network_options = run.options("network")
    _check_padding(rule, exchange_name)
    memory = memory_of(run, cluster, stream.steps[-1], setting.room.slots_of)
    check_memory(run, cluster, memory)
    return Parts(
        run=run,
        cluster=cluster,
        stream=stream,
        plan=plan,
        groups=groups,
        room=setting.room,
        memory=memory,
        workload=stream.steps[0],
        placements=plan.placements[0],
        exchange=exchange,
        beyond=_beyond(run, cluster, schedule),
        network=pick(networks, network_name, **network_options),
        rule=rule,
        top_k=router.options.get("k") or run.model.top_k,
        protected=capacities.protected_tokens(capacities.stream(run.seed), rule, stream.steps[0].context),
        recorder=_recorder(run, cluster),
        timing=_sparing(run, cluster) if schedule.spares else timed,
        beside=None if schedule.plain else _beside(run, cluster),
        schedule=schedule,
        sm_seconds=sm_seconds(exchange_name, cluster) if schedule.kernels else None,
    )


def _exchange(run: Run) -> tuple[str, Mapping[str, Any], Callable[..., Any]]:
    """Name, options and function of the exchange; the plainest where nothing leaves its GPU."""
    name, options = run.options("exchange")
    exchange = pick(exchanges, name, **options)
    return ("direct", {}, exchanges.direct) if run.group.inside else (name, options, exchange)


def _beyond(run: Run, cluster: Cluster, schedule: Schedule) -> tuple[str, ...]:
    """What to say of an exchange beyond the range of its constants, and of what stands for a measurement that is not there."""
    if run.group.inside:
        return (f"parallel.expert_tensor={run.group.tensor}: every GPU has a part of every expert; nothing is exchanged",)
    if not run.model.n_experts:
        return ()
    name, options = run.options("exchange")
    said = beyond(name, options, cluster, tokens_per_gpu=run.tokens_per_gpu)
    if schedule.batches > 1 and (late := wait_beside(name, options)):
        said += (
            f"exchange={name} beside another micro-batch begins up to {format_seconds(late)} late: measured in training, with "
            f"{MEASURED_BATCH:,} tokens a micro-batch, and taken as less in proportion below that",
        )
    return said


def _schedule(run: Run) -> Schedule:
    """The order of a pass, with what it cannot do beside refused."""
    name, options = run.options("schedule")
    order = bind("schedule", name, find(schedules, name, "schedule"), options)
    made: Schedule = order([layer in run.model.moe_layers for layer in range(run.model.n_layers)])
    if made.plain:
        return made
    if made.batches > 1 and run.config["exchange"]["name"] in CALLED and run.config["compute"]["name"] != "none":
        made = with_kernels(made)
    if not run.model.n_experts or run.group.inside:
        what = f"model={run.model.name}" if not run.model.n_experts else f"parallel.expert_tensor={run.group.tensor}"
        raise InputError(f"schedule={name}: {what} exchanges nothing; use schedule=in_order schedule.shared=after")
    if made.cuts > run.tokens_per_gpu // (run.decoding.per_sequence if run.decoding else 1):
        asked = f"workload.tokens_per_gpu={run.config['workload']['tokens_per_gpu']}"
        raise InputError(f"schedule={name}: {asked} is below the {made.cuts} pieces that it is cut in; least: {made.cuts}")
    refused = {
        "causes=true": run.causes, "decide.migration=overlapped": run.config["decide"].get("migration") == "overlapped",
        "trace.counts=true": made.cuts > 1 and bool(run.config["trace"].get("counts")),
        "capacity.pad=true": made.cuts > 1 and bool(run.config["capacity"].get("pad")),
        f"capacity.pad_multiple={run.config['capacity'].get('pad_multiple')}":
            made.cuts > 1 and (run.config["capacity"].get("pad_multiple") or 1) > 1,
        "router=soft_moe": made.cuts > 1 and run.config["router"]["name"] == "soft_moe",
    }  # fmt: skip
    for key, given in refused.items():
        if given:
            raise InputError(f"{key}: is built for schedule=in_order schedule.shared=after, not for schedule={name}")
    return made


def _beside(run: Run, cluster: Cluster) -> Timing | None:
    """How long things compute while an exchange holds SMs; None where it holds none, or computing takes no time."""
    exchange, options = run.options("exchange")
    held = sms_held(exchange, options, cluster)
    name, options = run.options("compute")
    if not held or name == "none" or ":" in name:
        return None
    options, gpu = timing.fewer_sms(name, options, cluster.gpu, held)
    made: Timing = bind("compute", name, find(timing, name, "compute"), options)(run.model, gpu)
    return made


def _sparing(run: Run, cluster: Cluster) -> Timing:
    """How long things compute where GEMMs leave the exchange's SMs alone."""
    exchange, given = run.options("exchange")
    name, options = run.options("compute")
    if name != "none" and ":" not in name:
        options = timing.sparing_sms(name, options, cluster.gpu, sms_held(exchange, given, cluster))
    made: Timing = bind("compute", name, find(timing, name, "compute"), options)(run.model, cluster.gpu)
    return made


def _recorder(run: Run, cluster: Cluster) -> Recorder | None:
    """What keeps exchanges for a time line, when one is asked for."""
    first, most, arrows = timeline_window(run)
    return Recorder(cluster, first=first, most=most, arrows=arrows) if run.config["export"]["timeline"] else None


def timeline_window(run: Run) -> tuple[int, int, str]:
    """What a time line shows: the layers from the first on, how many events, which arrows.

    Raises:
        InputError: a key of `export` has another value than it may.
    """
    export = run.config["export"]
    first = whole("export.first_layer", export["first_layer"], least=0)
    most = whole("export.events", export["events"], least=1000)
    if export["arrows"] not in ("all", "last"):
        raise InputError(f"export.arrows={export['arrows']}: must be all or last")
    if not isinstance(export["timeline"], bool):
        raise InputError(f"export.timeline={export['timeline']}: must be true or false")
    return first, most, export["arrows"]


@lru_cache(maxsize=4)
def _cluster(name: str, fields: str) -> Cluster:
    """The machine that this JSON describes; the jobs of a sweep share it."""
    return build_cluster(name, json.loads(fields))


def _check_padding(rule: capacities.Rule, exchange: str) -> None:
    """InputError where rows are filled up before they travel, and the exchange has no way to send them."""
    if not rule.sends_padding or ":" in exchange or exchange in exchanges.PADDING:
        return
    key = "pad=true" if rule.pad else f"pad_multiple={rule.pad_multiple}"
    can = " or ".join(sorted(exchanges.PADDING))
    raise InputError(
        f"capacity.{key}: exchange={exchange} cannot send padding; use exchange={can}, "
        "or capacity.where=expert, which pads on arrival"
    )


def _check_counts(
    router: Router, rule: capacities.Rule, exchange: str, n_slots: int, n_experts: int, causes: bool
) -> None:
    """InputError where something asks for single tokens, which counts do not have."""
    need = "single tokens, and trace.counts=true has only how many of a GPU choose each expert"
    if causes:
        raise InputError(f"causes=true: needs {need}; use trace.counts=false")
    if router.name != "recorded":
        raise InputError(f"router={router.name}: needs {need}; use trace.counts=false")
    if rule.limits or rule.pad_multiple > 1:
        raise InputError(f"capacity: a limit or padding needs {need}; use trace.counts=false")
    if exchange not in exchanges.PADDING:
        can = " or ".join(sorted(exchanges.PADDING))
        raise InputError(f"exchange={exchange}: needs {need}; use exchange={can} or trace.counts=false")
    if n_slots > n_experts:
        raise InputError(
            f"placement.slots={n_slots}: choosing among replicas of {n_experts} experts needs {need}; "
            f"use placement.slots={n_experts} or trace.counts=false"
        )
