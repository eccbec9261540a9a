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

BEST_OF = ("eplb_global", "contiguous", "topology_greedy", "coactivation", "islands")
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
    *, start: str = "best", replica: str = "token_hash", moves: int = 20_000, seconds: float = 1.0, load: float = 0.0,
    crossing: float = 0.0, migration: float = 0.0, at: str = "mean",
) -> Placement:
    """Every move once in random order, the first that does not raise the goal taken at once; over after a sweep without gain.

    A move exchanges the GPUs of two slots, or gives a slot of an expert with several to another expert. The goal is the
    weighted sum of `objective.Goal`; a hundredth of how evenly links and GPUs are used leads across plateaus. Without
    tokens, or with seconds and crossing 0, loads alone are looked at. The result is never worse than the start.

    Args:
        start: the placement to begin from, by name; best: that of `BEST_OF` with the least goal.
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
    *, start: str = "best", replica: str = "token_hash", moves: int = 20_000, heat: float = 0.01, seconds: float = 1.0,
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
    by_tokens = goal.seconds > 0 or goal.crossing > 0
    run = kernel.try_moves if by_tokens else kernel.try_moves_of_load
    walks: list[_Walk] = []
    for begin in _starts(rng, past, room, start):
        state: Any = tokens_of(past, room, begin, goal, replica) if by_tokens else loads_of(past, room, begin, goal)
        if walks and by_tokens:
            state.weights[:] = walks[0].state.weights           # in the seconds of the first
        value = float(kernel.value_of(state) if by_tokens else kernel.peak_of(state))
        walks.append(_Walk(begin, state, run, value))
    start_value = min(walk.value for walk in walks)
    share = moves // (2 * len(walks)) if len(walks) > 1 else 0
    for walk in walks if share else ():
        walk.sweep(rng, share)
    best = min(walks, key=lambda walk: walk.best)
    left = max(1, moves - sum(walk.moves for walk in walks))
    if heat > 0:
        best.anneal(rng, left, heat * best.best)
    else:
        best.sweep(rng, left)
    begin = min(walks, key=lambda walk: walk.first).begin
    found = replace(best.begin, expert_of=best.best_expert, gpu_of=best.best_gpu)
    tried, lowered = sum(walk.moves for walk in walks), sum(walk.lowered for walk in walks)
    if best.best >= start_value or _worse(past, goal, found, begin):
        return Searched(placement=begin, start=start_value, value=start_value, moves=tried, lowered=lowered)
    return Searched(placement=found, start=start_value, value=best.best, moves=tried, lowered=lowered)


def _starts(rng: np.random.Generator, past: Past, room: Room, name: str) -> list[Placement]:
    """The placements that a search may begin from."""
    if name in ("local_search", "annealing"):
        raise InputError(f"placement.start={name}: a search begins from something that is no search")
    if name == "best":
        even = (room.slots_of == room.slots_of[0]).all()
        without = (() if even else ("eplb_global",)) + (() if past.asked is not None else ("coactivation",))
        names = [one for one in BEST_OF if one not in without]
    else:
        names = [name]
    functions: list[Callable[..., Placement]] = [find(placements, one, "placement.start") for one in names]
    return [function(rng, past, room) for function in functions]


def _worse(past: Past, goal: Goal, found: Placement, begin: Placement) -> bool:
    """Whether the simulator's own seconds, where they are known and all that counts, are more than at the start."""
    if past.cost is None or goal.load > 0 or goal.crossing > 0 or goal.migration > 0 or goal.seconds == 0:
        return False
    return goal.of(past.cost(found)) > goal.of(past.cost(begin))


class _Walk:
    """A search on its way from one start: the kernel's state, and the best placement met."""

    def __init__(self, begin: Placement, state: Any, run: Callable[..., Any], value: float) -> None:
        self.begin, self.state, self.run = begin, state, run
        self.first = self.value = self.best = value
        self.best_expert, self.best_gpu = begin.expert_of.copy(), begin.gpu_of.copy()
        self.moves = self.lowered = 0

    def _try(self, a: Ints, b: Ints, expert: Ints, draw: Floats, temperature: Floats) -> int:
        """Try these moves; how many lowered the value."""
        self.value, self.best, tried, lowered = self.run(
            self.state, a, b, expert, draw, temperature, self.value, self.best, self.best_expert, self.best_gpu
        )
        self.moves, self.lowered = self.moves + tried, self.lowered + lowered
        return int(lowered)

    def sweep(self, rng: np.random.Generator, moves: int) -> None:
        """All moves in random order, again and again, until a sweep lowers nothing or the moves are used up."""
        n_slots, n_experts = self.state.gpu_of.size, self.state.replicas.size
        one, two = np.triu_indices(n_slots, 1)
        giving = n_slots * n_experts if n_slots > n_experts else 0
        end, gained = self.moves + moves, 1
        while gained and self.moves < end:
            gained = 0
            order = rng.permutation(one.size + giving)
            for begin in range(0, order.size, BATCH):
                part = order[begin : min(begin + BATCH, begin + end - self.moves)]
                swap = part < one.size
                at, given = np.where(swap, part, 0), np.maximum(part - one.size, 0)
                a = np.where(swap, one[at], given // n_experts)
                nothing = np.zeros(part.size)
                gained += self._try(a, two[at], np.where(swap, -1, given % n_experts), nothing, nothing)

    def anneal(self, rng: np.random.Generator, moves: int, heat: float) -> None:
        """Random moves while the temperature falls geometrically from `heat` to a thousandth of it."""
        n_slots, n_experts = self.state.gpu_of.size, self.state.replicas.size
        temperature: Floats = heat * 1e-3 ** (np.arange(moves) / moves)
        giving = 0.5 if n_slots > n_experts else 0.0
        for begin in range(0, moves, BATCH):
            heats = temperature[begin : begin + BATCH]
            n = heats.size
            a, b = rng.integers(0, n_slots, n), rng.integers(0, n_slots, n)
            expert = np.where(rng.random(n) < giving, rng.integers(0, n_experts, n), -1)
            self._try(a, b, expert, 1.0 - rng.random(n), heats)
