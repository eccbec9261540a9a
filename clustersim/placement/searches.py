"""Searches from any start: exchange two slots, or give one to another expert, while that lowers the goal. Seeded, no clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clustersim import placement as placements
from clustersim.pick import find
from clustersim.placement.objective import Goal, loads_of, tokens_of
from clustersim.placement.past import Past, Room, need_slots
from clustersim.types import Floats, InputError, Ints, Placement

BATCH = 4096                # moves between two looks at whether the search is over


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """How a search went."""

    placement: Placement
    start: float                # value of the goal where it began
    value: float                # and at the best placement met
    moves: int                  # evaluated
    lowered: int                # of them those that lowered the value


def local_search(
    rng: np.random.Generator, past: Past, room: Room,
    *, start: str = "eplb_global", replica: str = "token_hash", moves: int = 20_000, seconds: float = 1.0, load: float = 0.0,
    crossing: float = 0.0, migration: float = 0.0, at: str = "mean",
) -> Placement:
    """Every move once in random order, the first that does not raise the goal taken at once; over after a sweep without gain.

    A move exchanges the GPUs of two slots, or gives a slot of an expert with several to another expert. The goal is the
    weighted sum of `objective.Goal`; a hundredth of how evenly links and GPUs are used leads across plateaus. Without
    tokens, or with seconds and crossing 0, loads alone are looked at. The result is never worse than the start.

    Args:
        start: the placement to begin from, by name; none with options that must be set.
        replica: the replica rule that tokens will follow.
        moves: evaluated at most.
        seconds, load, crossing, migration, at: see `objective.Goal`.

    Raises:
        InputError: fewer slots than experts, a start that cannot be, a goal that cannot be, tokens that are needed and unknown.
    """
    goal = Goal(seconds=seconds, load=load, crossing=crossing, migration=migration, at=at)
    return searched(rng, past, room, goal, start=start, replica=replica, moves=moves, heat=0.0).placement


def annealing(
    rng: np.random.Generator, past: Past, room: Room,
    *, start: str = "eplb_global", replica: str = "token_hash", moves: int = 20_000, heat: float = 0.01, seconds: float = 1.0,
    load: float = 0.0, crossing: float = 0.0, migration: float = 0.0, at: str = "mean",
) -> Placement:
    """Simulated annealing: random moves, one that raises the goal by d taken with probability exp(-d / temperature).

    The temperature falls geometrically from `heat` of the start's value to a thousandth of that. Moves and goal as in
    `local_search`; the result is the best placement met, never worse than the start.

    Source: Kirkpatrick, Gelatt, Vecchi, Science 220 (1983).

    Args:
        heat: first temperature, as a share of the start's value.
        moves: tried.
        start, replica, seconds, load, crossing, migration, at: as `local_search`.

    Raises:
        InputError: as `local_search`, or a heat that is not above 0.
    """
    if not heat > 0:
        raise InputError(f"placement.heat={heat}: must be a number above 0 (0.01 accepts what is a hundredth worse, at first)")
    goal = Goal(seconds=seconds, load=load, crossing=crossing, migration=migration, at=at)
    return searched(rng, past, room, goal, start=start, replica=replica, moves=moves, heat=heat).placement


def searched(
    rng: np.random.Generator, past: Past, room: Room, goal: Goal, *, start: str, replica: str, moves: int, heat: float
) -> Searched:
    """A search, and how it went; `heat` 0 is the local search.

    Raises:
        InputError: as `local_search`.
    """
    from clustersim.placement import kernel

    need_slots(past, room)
    if moves < 1:
        raise InputError(f"placement.moves={moves}: at least one move is tried")
    begin = _start(rng, past, room, start)
    state: Any
    if goal.seconds > 0 or goal.crossing > 0:
        state, run = tokens_of(past, room, begin, goal, replica), kernel.try_moves
        value = float(kernel.value_of(state))
    else:
        state, run = loads_of(past, room, begin, goal), kernel.try_moves_of_load
        value = float(kernel.peak_of(state))
    best = Searched(placement=begin, start=value, value=value, moves=0, lowered=0)
    walk = _anneal if heat > 0 else _sweep
    best_expert, best_gpu = begin.expert_of.copy(), begin.gpu_of.copy()
    reached, evaluated, lowered = walk(rng, state, run, value, best_expert, best_gpu, moves, heat * value, past.n_experts)
    found = replace(begin, expert_of=best_expert, gpu_of=best_gpu)
    best = replace(best, moves=evaluated, lowered=lowered)
    if reached >= value or _worse(past, goal, found, begin):
        return best
    return replace(best, placement=_by_gpu(found) if replica == "nearest" else found, value=reached)


def _start(rng: np.random.Generator, past: Past, room: Room, name: str) -> Placement:
    """The placement that a search begins from."""
    function: Callable[..., Placement] = find(placements, name, "placement.start")
    if name in ("local_search", "annealing"):
        raise InputError(f"placement.start={name}: a search begins from something that is no search")
    return function(rng, past, room)


def _worse(past: Past, goal: Goal, found: Placement, begin: Placement) -> bool:
    """Whether the simulator's own seconds, where they are known and all that counts, are more than at the start."""
    if past.cost is None or goal.load > 0 or goal.crossing > 0 or goal.migration > 0 or goal.seconds == 0:
        return False
    return goal.of(past.cost(found)) > goal.of(past.cost(begin))


def _by_gpu(p: Placement) -> Placement:
    """The same with slots in the order of their GPUs."""
    order = np.argsort(p.gpu_of, kind="stable")
    return replace(p, gpu_of=p.gpu_of[order], expert_of=p.expert_of[order])


def _sweep(
    rng: np.random.Generator, state: Any, run: Callable[..., Any], value: float, best_expert: Ints, best_gpu: Ints, moves: int,
    heat: float, n_experts: int,
) -> tuple[float, int, int]:
    """Sweeps over all moves in random order, until one lowers nothing or the moves are used up."""
    n_slots = state.gpu_of.size
    one, two = np.triu_indices(n_slots, 1)
    swaps = one.size
    giving = n_slots * n_experts if n_slots > n_experts else 0
    best, evaluated, lowered = value, 0, 0
    while evaluated < moves:
        gained = 0
        order = rng.permutation(swaps + giving)
        for begin in range(0, order.size, BATCH):
            part = order[begin : begin + BATCH]
            swap = part < swaps
            at = np.where(swap, part, 0)
            given = np.maximum(part - swaps, 0)
            a = np.where(swap, one[at], given // n_experts)
            expert = np.where(swap, -1, given % n_experts)
            zero = np.zeros(part.size)
            allowed = min(part.size, moves - evaluated)
            value, best, tried, down = run(
                state, a[:allowed], two[at][:allowed], expert[:allowed], zero[:allowed], zero[:allowed], value, best,
                best_expert, best_gpu,
            )  # fmt: skip
            evaluated, lowered, gained = evaluated + tried, lowered + down, gained + down
            if evaluated >= moves:
                break
        if not gained:
            break
    return best, evaluated, lowered


def _anneal(
    rng: np.random.Generator, state: Any, run: Callable[..., Any], value: float, best_expert: Ints, best_gpu: Ints, moves: int,
    heat: float, n_experts: int,
) -> tuple[float, int, int]:
    """Random moves while the temperature falls."""
    n_slots = state.gpu_of.size
    best, evaluated, lowered = value, 0, 0
    temperature: Floats = heat * 1e-3 ** (np.arange(moves) / moves)
    giving = 0.5 if n_slots > n_experts else 0.0
    for begin in range(0, moves, BATCH):
        heats = temperature[begin : begin + BATCH]
        n = heats.size
        a, b = rng.integers(0, n_slots, n), rng.integers(0, n_slots, n)
        expert = np.where(rng.random(n) < giving, rng.integers(0, n_experts, n), -1)
        value, best, tried, down = run(
            state, a, b, expert, 1.0 - rng.random(n), heats, value, best, best_expert, best_gpu
        )
        evaluated, lowered = evaluated + tried, lowered + down
    return best, evaluated, lowered
