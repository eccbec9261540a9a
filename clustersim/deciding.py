"""Which placement each step has: past load and prices go in, placements and the moves between them come out. Plays nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from clustersim.cluster import Cluster
from clustersim.engine.timing import Timing
from clustersim.lanes import routes_of
from clustersim.model import Model
from clustersim.network.bounds import busiest_link_end, chained, link_bytes
from clustersim.placement import static
from clustersim.placement.changing import drifted, included
from clustersim.placement.migration import moves_between, transfers_of
from clustersim.placement.objective import UNITS, Goal, Price, tokens_of
from clustersim.placement.past import Past, Room
from clustersim.placement.replicas import chosen_slots
from clustersim.types import Floats, InputError, Ints, Placement, Routing, Transfers, Workload

DRIFT_STREAM = 7_000_002                # of the random numbers of loads that moved on, apart from every layer's
MANY_TOKENS = 1 << 30                   # so many that arithmetic decides how long they take

Place = Callable[[np.random.Generator, Past, Room], Placement]
Seen = Callable[[int], Past]            # what is known of a MoE layer


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Plan:
    """The placements of every MoE layer in every step, and what moves before a step."""

    placements: tuple[tuple[Placement, ...], ...]       # [steps][MoE layers]
    moves: tuple[Transfers | None, ...]                 # [steps] what has to have come before the step; None nothing
    moved: tuple[Ints, ...]                             # [steps] experts brought to a GPU, int [MoE layers]
    buffer_bytes: float                                 # memory of the fullest GPU for weights on their way
    notes: tuple[str, ...]
    rebalances: int = 0                                 # times that placements were decided anew between steps

    def never_again(self) -> Plan:
        """The same with the first placements kept throughout."""
        n = len(self.placements)
        none = tuple(np.zeros_like(moved) for moved in self.moved)
        return replace(self, placements=(self.placements[0],) * n, moves=(None,) * n, moved=none, rebalances=0)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Setting:
    """What a placement may know of the machine: enough to say what it would cost."""

    model: Model
    cluster: Cluster
    room: Room
    exchange: Callable[..., Transfers]
    timing: Timing                                      # how long experts take
    replica: str
    seed: int


def looks_at_load(function: Callable[..., Placement]) -> bool:
    """Whether a placement is decided on past load; those of `placement.static` are not."""
    return bool(inspect.unwrap(getattr(function, "func", function)).__module__ != static.__name__)


def with_replica(function: Callable[..., Placement], replica: str) -> Callable[..., Placement]:
    """The placement with the rule that tokens will follow, where it is one that asks for it (a search does)."""
    return partial(function, replica=replica) if "replica" in inspect.signature(function).parameters else function


def decided(setting: Setting, place: Place, seen: Seen, now: Sequence[Placement] | None) -> tuple[Placement, ...]:
    """The placement of every MoE layer, one layer after the other.

    Args:
        seen: what is known of each layer.
        now: the placements in force, None when there are none yet.

    Raises:
        InputError: what the placement raises.
    """
    found: list[Placement] = []
    before: Ints | None = None
    for layer in range(setting.model.n_moe_layers):
        rng = np.random.default_rng(np.random.SeedSequence(setting.seed, spawn_key=(layer,)))
        past = replace(
            seen(layer), now=None if now is None else now[layer], before=None if before is None else (before, found[-1])
        )
        before = past.asked
        found.append(replace(place(rng, past, setting.room), replica=setting.replica))
    return tuple(found)


def nothing_seen(setting: Setting) -> Seen:
    """No load at all, for a placement that does not look at it."""
    return lambda layer: Past(load=np.zeros((1, setting.model.n_experts)))


def loads_seen(loads: Sequence[Floats]) -> Seen:
    """The load of a file, [MoE layers] of float [steps, experts]; they repeat when the model has more layers."""
    return lambda layer: Past(load=loads[layer % len(loads)])


def steps_seen(setting: Setting, past: Sequence[Workload]) -> Seen:
    """What the router did in these steps; prices are made when a placement asks for them."""
    n = setting.model.n_experts
    price = partial(price_of, setting)

    def seen(layer: int) -> Past:
        asked = [tokens.choose(layer).ids for tokens in past]
        load = np.array([np.bincount(ids.ravel() + 1, minlength=n + 1)[1:] for ids in asked], np.float64)
        return Past(
            load=load, asked=np.concatenate(asked), source=np.concatenate([tokens.source for tokens in past]),
            index=np.concatenate([tokens.index for tokens in past]),
            step=np.repeat(np.arange(len(asked)), [len(a) for a in asked]),
            price=price, cost=partial(seconds_of, setting, list(zip(past, asked, strict=True))),
        )

    return seen


def seconds_of(setting: Setting, steps: Sequence[tuple[Workload, Ints]], placement: Placement) -> Floats:
    """Seconds of one layer in each step under a placement: `bound` of dispatch, busiest GPU's experts, `bound` of combine."""
    model, cluster = setting.model, setting.cluster
    seconds = []
    for tokens, asked in steps:
        routing = _routing(asked, tokens.source, tokens.index)
        placed = replace(placement, replica=setting.replica)
        total = sum(
            _bound(cluster, setting.exchange(phase, routing, placed, cluster, model)) for phase in ("dispatch", "combine")
        )
        slots = chosen_slots(routing, placed, cluster)
        in_slot = np.bincount(slots.ravel() + 1, minlength=placed.n_slots + 1)[1:]
        seconds.append(total + float(setting.timing.experts(in_slot, placed.gpu_of, cluster.n_gpus).max()))
    return np.array(seconds)


def _bound(cluster: Cluster, transfers: Transfers) -> float:
    routes = routes_of(cluster, transfers)
    latency, earliest = chained(transfers, routes.latency, transfers.release)
    end, _ = busiest_link_end(cluster.capacity, replace(routes, latency=latency), transfers.nbytes, earliest)
    return end


def _routing(asked: Ints, source: Ints, index: Ints) -> Routing:
    return Routing(asked=asked, assigned=asked, weights=None, source=source, index=index, capacity=None)


@lru_cache(maxsize=4)
def older(setting: Setting, seen: Seen, drift: float) -> Seen:
    """What was known before loads moved on by `drift` (see `changing.drifted`): loads alone, no tokens."""
    top_k = setting.model.top_k

    def known(layer: int) -> Past:
        load = seen(layer).load
        share = load.sum(axis=0) * (top_k / max(load.sum(), 1.0))
        rng = np.random.default_rng(np.random.SeedSequence(setting.seed, spawn_key=(DRIFT_STREAM, layer)))
        if not load.any():
            return Past(load=load)
        before = drifted(rng, included(share, top_k), drift, top_k)
        return Past(load=load * np.divide(before, share, out=np.zeros_like(share), where=share > 0))

    return known


def price_of(setting: Setting) -> Price:
    """What a copy of a token costs each link, and a token and a slot a GPU.

    Experts are priced as a roofline, also where kernels take their time in tiles and waves.

    The exchange is tried out on a few random tokens: it is priced when the bytes it puts on every link are those of one
    copy per choice, per GPU, or per node and then per GPU.

    Raises:
        InputError: they are not.
    """
    model, cluster = setting.model, setting.cluster
    n = cluster.n_gpus
    a, b = (end.ravel() for end in np.indices((n, n)))
    apart = a != b
    routes = cluster.routes(a[apart], b[apart])
    hops = np.zeros(n * n, np.int64)
    hops[apart] = np.diff(routes.start)
    price = Price(
        unit="choice", route_start=np.concatenate(([0], np.cumsum(hops))), route_links=routes.links, route_weights=routes.weights,
        forwarder=np.arange(cluster.n_nodes)[None, :] * cluster.gpus_per_node + cluster.local_of[:, None],
        dispatch_s=np.zeros(len(cluster.links)), combine_s=np.zeros(len(cluster.links)), **_expert_price(setting.timing),
    )
    if n == 1:
        return price
    rng = np.random.default_rng(0)
    asked = np.argsort(rng.random((4 * n, 2 * n)), axis=1)[:, : min(2 * n, max(4, model.top_k))]
    probe = _routing(asked, np.repeat(np.arange(n), 4), np.tile(np.arange(4), n))
    two_each = Placement(gpu_of=np.arange(2 * n) // 2, expert_of=np.arange(2 * n))
    one = _routing(np.array([[2 * n - 1]]), np.array([0]), np.array([0]))
    copy = {}
    carried = {}
    for phase in ("dispatch", "combine"):
        alone = setting.exchange(phase, one, two_each, cluster, model)
        copy[phase] = float(alone.nbytes[0]) if alone.n else 0.0
        many = setting.exchange(phase, probe, two_each, cluster, model)
        carried[phase] = link_bytes(routes_of(cluster, many), many.nbytes, len(cluster.links))
    price = replace(price, dispatch_s=copy["dispatch"] / cluster.capacity, combine_s=copy["combine"] / cluster.capacity)
    tokens = Past(
        load=np.zeros((1, 2 * n)), asked=probe.asked, source=probe.source, index=probe.index, step=np.zeros(4 * n, np.int64)
    )
    for unit in UNITS:
        tried = replace(price, unit=unit)
        state = tokens_of(replace(tokens, price=partial(_itself, tried)), setting.room, two_each, Goal(), "token_hash")
        if np.allclose(state.dispatched[0] * copy["dispatch"], carried["dispatch"], rtol=1e-9, atol=0.1) and np.allclose(
            state.combined[0] * copy["combine"], carried["combine"], rtol=1e-9, atol=0.1
        ):
            return tried
    raise InputError(
        "placement.seconds: the chosen exchange does not send one copy per choice, per GPU or per node, so that a search cannot "
        "price a move by itself; set placement.seconds=0 placement.load=1"
    )


def _expert_price(timing: Timing) -> dict[str, float]:
    """What a token, a slot and a busy GPU cost at the experts, from the times of one GPU: exact where they are a roofline."""

    def seconds(*tokens: int) -> float:
        return float(timing.experts(np.array(tokens), np.zeros(len(tokens), np.int64), 1)[0])

    token_memory = seconds(2) - seconds(1)
    slot_memory = seconds(1, 1) - seconds(1) - token_memory
    return {
        "token_s": seconds(MANY_TOKENS) / MANY_TOKENS, "token_memory_s": token_memory, "slot_memory_s": slot_memory,
        "gpu_s": max(0.0, seconds(1) - slot_memory - token_memory),
    }


def _itself(price: Price) -> Price:
    return price


def plan_once(setting: Setting, place: Place, seen: Seen, n_steps: int) -> Plan:
    """One placement for all steps, decided before the first."""
    placements = decided(setting, place, seen, None)
    none = np.zeros(len(placements), np.int64)
    return Plan(
        placements=(placements,) * n_steps, moves=(None,) * n_steps, moved=(none,) * n_steps, buffer_bytes=0.0,
        notes=_notes(placements),
    )


def plan_periodic(
    setting: Setting, place: Place, stream: Sequence[Workload],
    *, first: Place, window: int, period: int | None, warmup: int, migration: str, double_buffer: bool, horizon: int | None,
) -> Plan:
    """Placements for the steps from `warmup` on, decided before every `period`-th of them on the `window` steps before it.

    Args:
        stream: all steps; the first `warmup` are only looked at.
        first: the placement until there is a past.
        period: None: decided once only.
        migration: exposed, overlapped (experts travel beside a step, and serve from the next on), or free (they are there).
        double_buffer: there is memory for experts on their way beside those in use.
        horizon: steps within which moves have to pay, by the window's own seconds, or the placements stay; None: they need not.

    Raises:
        InputError: what the placements raise.
    """
    now = decided(setting, first, nothing_seen(setting), None)
    if warmup:
        now = decided(setting, place, steps_seen(setting, stream[max(0, warmup - window) : warmup]), now)
    placements, moves, moved = [], [], []
    notes, buffer, staged, rebalances = list(_notes(now)), 0.0, 0, 0
    for step in range(warmup, len(stream)):
        new, transfers, brought = now, None, np.zeros(len(now), np.int64)
        if period is not None and step > warmup and (step - warmup) % period == 0:
            seen = steps_seen(setting, stream[max(0, step - window) : step])
            new = decided(setting, place, seen, now)
            layers = [moves_between(a, b, setting.cluster.node_of) for a, b in zip(now, new, strict=True)]
            wanted, aside = transfers_of(layers, _expert_bytes(setting), double_buffer=double_buffer)
            if horizon is not None and not _pays(setting, seen, now, new, wanted, horizon):
                notes.append(f"before step {step}: moving {wanted.n} experts would not pay within {horizon} steps; they stay")
                new = now
            else:
                rebalances += 1
                notes += _notes(new)
                brought = np.array([m.src.size for m in layers])
                staged += aside
                transfers = wanted if wanted.n and migration != "free" else None
                buffer = max(buffer, _buffer_bytes(setting, wanted, aside, double_buffer))
        placements.append(now if migration == "overlapped" else new)
        moves.append(transfers)
        moved.append(brought)
        now = new
    if staged:
        notes.append(f"{staged} moves waited for each other in rings; one of each ring goes through a staging buffer")
    return Plan(
        placements=tuple(placements), moves=tuple(moves), moved=tuple(moved), buffer_bytes=buffer,
        notes=tuple(dict.fromkeys(notes)), rebalances=rebalances,
    )


def _expert_bytes(setting: Setting) -> float:
    return setting.model.expert_params * setting.model.expert_weight_bytes


def _buffer_bytes(setting: Setting, moves: Transfers, staged: int, double_buffer: bool) -> float:
    """Memory of the fullest GPU for weights that are on their way."""
    if double_buffer:
        return float(np.bincount(moves.dst, minlength=1).max()) * _expert_bytes(setting)
    return _expert_bytes(setting) if staged else 0.0


def _pays(
    setting: Setting, seen: Seen, now: Sequence[Placement], new: Sequence[Placement], moves: Transfers, horizon: int
) -> bool:
    """Whether `horizon` steps like those seen gain more than the moves take at best."""
    gain = 0.0
    for layer, (old, other) in enumerate(zip(now, new, strict=True)):
        cost = seen(layer).cost
        assert cost is not None, "seen steps can be priced"
        gain += float((cost(old) - cost(other)).mean())
    return bool(horizon * gain > _bound(setting.cluster, moves))


def _notes(placements: Sequence[Placement]) -> tuple[str, ...]:
    """What the algorithms said, each once, with the number of layers it is about."""
    said: dict[str, int] = {}
    for placement in placements:
        for note in placement.notes:
            said[note] = said.get(note, 0) + 1
    return tuple(f"{note} ({times} of {len(placements)} layers)" for note, times in said.items())


def periodic_keys(options: Mapping[str, Any], n_steps: int) -> Mapping[str, Any]:
    """The keys of decide=periodic, judged.

    Raises:
        InputError: a value that cannot be.
    """
    window, period, warmup, horizon = (options[key] for key in ("window", "period", "warmup", "horizon"))
    for key, value, least in (("window", window, 1), ("warmup", warmup, 0), ("period", 1 if period is None else period, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            null = " (null: decided once only)" if key == "period" else ""
            raise InputError(f"decide.{key}={value}: must be a whole number of steps from {least} up{null}")
    if warmup >= n_steps:
        raise InputError(f"decide.warmup={warmup}: leaves no step to play of {n_steps}; raise workload.steps above it")
    if options["migration"] not in ("exposed", "overlapped", "free"):
        raise InputError(f"decide.migration={options['migration']}: must be exposed, overlapped or free")
    if not isinstance(options["double_buffer"], bool):
        raise InputError(f"decide.double_buffer={options['double_buffer']}: must be true or false")
    if options["migration"] == "overlapped" and not options["double_buffer"]:
        raise InputError("decide.double_buffer=false: experts in use cannot be overwritten; overlapped needs it")
    if horizon is not None and (isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1):
        raise InputError(f"decide.horizon={horizon}: must be a whole number of steps from 1 up (null: moves need not pay)")
    if period is None and not warmup:
        raise InputError("decide.period=null: decided once, on the warm-up, and decide.warmup=0 leaves none")
    return options
