"""A slow model of the fluid network in exact rational arithmetic, to check the fast one against. Shares no code with it.

`finish_times` finds all rates anew from nothing at every event. Feed it small integers or floats; it never rounds.
`fast` and `waiting` put the same question to the solver under test.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from clustersim.network import sharing
from clustersim.types import Routes, Transfers

Number = int | float | Fraction


def max_min_rates(capacity, uses, caps):
    """Max-min fair rates: raise the rates of all flows together; those that meet a limit stay there.

    Args:
        capacity: [links].
        uses: [flows] link -> weight.
        caps: [flows] the most a flow may have, None without.
    """
    rates = [None] * len(uses)
    room = dict(enumerate(capacity))
    rising = set(range(len(uses)))
    while rising:
        demand = {}
        for flow in rising:
            for link, weight in uses[flow].items():
                demand[link] = demand.get(link, 0) + weight
        fair = {link: room[link] / total for link, total in demand.items()}
        level = min([*fair.values(), *(caps[f] for f in rising if caps[f] is not None)])
        stuck = [f for f in rising if caps[f] == level or any(fair[link] == level for link in uses[f])]
        for flow in stuck:
            rates[flow] = level
            rising.discard(flow)
            for link, weight in uses[flow].items():
                room[link] -= weight * level
    return rates


def coupled_rates(capacity, uses, followed):
    """Max-min rates where a flow's cap is the pace of the flows that it has caught up with.

    Args:
        followed: [flows] list of (flow, ratio): the rate may not exceed ratio times that flow's.

    The rates must agree with the caps that follow from them. Without a circle (a flow that shares a link with what comes
    after what it limits) repeating the filling ends after as many rounds as the longest chain; with one, the repetition
    only suggests which limit holds for which flow, and a linear system says the rest. Within a circle more than one set
    of rates may agree (seen in 1 of some 4,000 random systems with weights); this looks for it from no caps at all.
    """
    caps = [None] * len(uses)
    for _ in range(len(uses) + 2):
        rates = max_min_rates(capacity, uses, caps)
        wanted = _caps(rates, followed)
        if wanted == caps:
            return rates
        caps = wanted
    rough_capacity = [float(c) for c in capacity]
    rough_uses = [{link: float(weight) for link, weight in row.items()} for row in uses]
    rough_followed = [[(p, float(ratio)) for p, ratio in row] for row in followed]
    rough_caps = [None if c is None else float(c) for c in caps]
    for damping in (0.5, 0.2, 0.05, 0.01):
        for turn in range(int(60 / damping)):
            rates = max_min_rates(rough_capacity, rough_uses, rough_caps)
            wanted = _caps(rates, rough_followed)
            rough_caps = [w if c is None else c + damping * (w - c) for c, w in zip(rough_caps, wanted, strict=True)]
            if turn % 30 == 29 and (exact := _from_structure(capacity, uses, followed, rates, rough_followed)) is not None:
                return exact
    raise ArithmeticError("no rates were found that agree with their caps")


def _caps(rates, followed):
    return [min(ratio * rates[p] for p, ratio in row) if row else None for row in followed]


def _from_structure(capacity, uses, followed, rough, rough_followed):
    """The exact rates near `rough` ones: each flow at its cap or at the level of a full link. None when they do not hold."""
    near = 1 + 1e-7
    n = len(uses)
    load = {}
    for flow, row in enumerate(uses):
        for link, weight in row.items():
            load[link] = load.get(link, 0) + float(weight) * rough[flow]
    level = {}                                              # full link -> its unknown
    equations = []                                          # (coefficients, right side)
    for flow, row in enumerate(uses):
        parent = min(rough_followed[flow], key=lambda edge: edge[1] * rough[edge[0]], default=None)
        if parent is not None and parent[1] * rough[parent[0]] <= rough[flow] * near:
            exact_ratio = next(ratio for p, ratio in followed[flow] if p == parent[0])
            equations.append(({flow: Fraction(1), parent[0]: -exact_ratio}, Fraction(0)))
            continue
        full = [
            link for link in row
            if load[link] * near >= capacity[link]
            and all(rough[flow] * near >= rough[g] for g in range(n) if link in uses[g])
        ]  # fmt: skip
        if not full:
            return None
        link = next((x for x in full if x in level), full[0])
        equations.append(({flow: Fraction(1), level.setdefault(link, n + len(level)): Fraction(-1)}, Fraction(0)))
    for link in level:
        equations.append(({f: row[link] for f, row in enumerate(uses) if link in row}, capacity[link]))
    solution = _solve(equations, n + len(level))
    if solution is None:
        return None
    rates, caps = solution[:n], _caps(solution[:n], followed)
    total = {}
    for flow, row in enumerate(uses):
        for link, weight in row.items():
            total[link] = total.get(link, 0) + weight * rates[flow]
    if any(rate <= 0 for rate in rates) or any(total[link] > capacity[link] for link in total):
        return None
    for flow, row in enumerate(uses):
        if caps[flow] is not None and rates[flow] >= caps[flow]:
            if rates[flow] > caps[flow]:
                return None
        elif not any(
            total[link] == capacity[link] and all(rates[flow] >= rates[g] for g in range(n) if link in uses[g]) for link in row
        ):
            return None
    return rates


def _solve(equations, n):
    """Gauss-Jordan over rationals; None when singular."""
    rows = [[coefficients.get(i, Fraction(0)) for i in range(n)] + [right] for coefficients, right in equations]
    for column in range(n):
        pivot = next((i for i in range(column, n) if rows[i][column]), None)
        if pivot is None:
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        lead = rows[column][column]
        rows[column] = [x / lead for x in rows[column]]
        for i in range(n):
            if i != column and rows[i][column]:
                factor = rows[i][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[column], strict=True)]
    return [row[n] for row in rows]


def finish_times(
    capacity: Sequence[Number],
    routes: Sequence[Sequence[int]],
    nbytes: Sequence[Number],
    release: Sequence[Number],
    *,
    weights: Sequence[Sequence[Number]] | None = None,
    after: Sequence[Sequence[int]] | None = None,
    chunk: Sequence[Number] | None = None,
    rate_cap: Sequence[Number] | None = None,
    changes: Sequence[tuple[Number, int, Number]] = (),
) -> list[Fraction]:
    """When the last byte of every flow has left, seconds [flows]; exact.

    Args:
        capacity: bytes/s [links].
        routes: links of each flow.
        nbytes: bytes [flows]; a flow without bytes or without links ends when it is released.
        release: seconds [flows].
        weights: share of the flow's bytes on each link of its route; 1 when not given. A link named twice counts twice.
        after: for each flow those that it follows (see `clustersim.types.Transfers`).
        chunk: bytes [flows]; read where a flow follows others.
        rate_cap: bytes/s [flows], inf without; each is a link of the flow's own.
        changes: (seconds, link, bytes/s): the link has that capacity from then on; of one instant the last counts. 0 stops it.
    """
    n = len(routes)
    capacity = [Fraction(c) for c in capacity]
    to_come = sorted(((Fraction(t), i, link, Fraction(c)) for i, (t, link, c) in enumerate(changes)), reverse=True)
    size, released = [Fraction(b) for b in nbytes], [Fraction(r) for r in release]
    uses = [{} for _ in range(n)]
    for flow, route in enumerate(routes):
        for link, weight in zip(route, weights[flow] if weights else [1] * len(route), strict=True):
            uses[flow][link] = uses[flow].get(link, Fraction(0)) + Fraction(weight)
        if rate_cap and rate_cap[flow] < float("inf") and route:
            uses[flow][len(capacity)] = Fraction(1)
            capacity.append(Fraction(rate_cap[flow]))
    after = after or [[]] * n
    piece = [min(Fraction(1), Fraction(chunk[f]) / size[f]) if after[f] else None for f in range(n)]
    moved = [Fraction(0)] * n                                               # fraction of each flow that has left
    end = [released[f] if size[f] == 0 or not uses[f] else None for f in range(n)]
    live: set[int] = set()
    now = min(released, default=Fraction(0))

    def behind(flow):
        return [p for p in after[flow] if end[p] is None]                   # those that can still hold it back

    while any(e is None for e in end):
        while to_come and to_come[-1][0] <= now:
            _, _, link, capacity[link] = to_come.pop()
        for flow in range(n):
            first_chunk_is_in = all(p in live and moved[p] >= piece[flow] and piece[flow] < 1 for p in behind(flow))
            if end[flow] is None and released[flow] <= now and first_chunk_is_in:
                live.add(flow)
        order = sorted(live)
        place = {flow: i for i, flow in enumerate(order)}
        caught = [
            [(place[p], size[f] / size[p]) for p in behind(f) if moved[p] - piece[f] == moved[f]] for f in order
        ]  # fmt: skip
        rate = dict(zip(order, coupled_rates(capacity, [uses[f] for f in order], caught), strict=True))
        pace = {f: r / size[f] for f, r in rate.items()}                    # fractions per second
        steps = [(1 - moved[f]) / pace[f] for f in order if pace[f] > 0]
        steps += [r - now for r in released if r > now] + [change[0] - now for change in to_come[-1:]]
        for flow in range(n):
            if end[flow] is not None:
                continue
            for p in behind(flow):
                if p not in live or piece[flow] >= 1:
                    continue
                if flow not in live and moved[p] < piece[flow] and pace[p] > 0:
                    steps.append((piece[flow] - moved[p]) / pace[p])
                if flow in live and moved[p] - piece[flow] > moved[flow] and pace[flow] > pace[p]:
                    steps.append((moved[p] - piece[flow] - moved[flow]) / (pace[flow] - pace[p]))
        assert steps, "flows are left that nothing will release"
        step = min(steps)
        now += step
        for flow in order:
            moved[flow] += pace[flow] * step
            if moved[flow] == 1:
                end[flow] = now
                live.discard(flow)
    return end


def fast(capacity, routes, nbytes, release, *, weights=None, after=None, chunk=None):
    """The same question put to the solver under test: its state after the last flow has drained.

    `state.flows["drain"]` and `state.flows["start"]` are in the order of the flows; all bytes and routes must be positive.
    """
    state = waiting(capacity, routes, nbytes, weights=weights, after=after, chunk=chunk)
    sharing.solve_all(state, np.asarray(release, float))
    return state


def waiting(capacity, routes, nbytes, *, weights=None, after=None, chunk=None, onto=None):
    """A solver state with these flows, none released; each has a counter of its own. `onto` a state that holds others."""
    state = sharing.empty(np.asarray(capacity, float)) if onto is None else onto
    weights = weights or [[1.0] * len(route) for route in routes]
    after = after or [[] for _ in routes]
    zero = np.zeros(len(routes), np.int64)
    old = state.counters.size
    own = old + np.arange(len(routes))
    rows = Routes(
        start=np.cumsum([0, *map(len, routes)]), links=np.array([x for route in routes for x in route], np.int64),
        weights=np.array([x for row in weights for x in row], float), latency=np.zeros(len(routes)),
    )  # fmt: skip
    transfers = Transfers(
        src=zero, dst=zero, nbytes=np.asarray(nbytes, float), release=np.zeros(len(routes)),
        chunk=np.asarray(nbytes if chunk is None else chunk, float), after_start=np.cumsum([0, *map(len, after)]),
        after=np.array([p for row in after for p in row], np.int64),
    )  # fmt: skip
    return sharing.extend(state, rows, transfers, inbox=own, outbox=own, n_counters=old + len(routes))
