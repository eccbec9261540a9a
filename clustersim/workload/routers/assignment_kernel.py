"""The inner loops of routers that give every expert its room: the next expert that has some, and exact assignment.

Import this module late: importing numba takes half a second and the first compilation some seconds.
"""

from __future__ import annotations

import numpy as np

from clustersim.jit import inlined, njit


@njit
def next_with_room(ranked, n_experts, room, ids):
    """Choice by choice, token by token: an expert with room, from the one asked for upwards, that the token has not got.

    Where all with room are its own already, the next that is not takes one more than its room.
    """
    n_tokens, k = ranked.shape
    load = np.zeros(n_experts, np.int64)
    for j in range(k):
        for t in range(n_tokens):
            e = -1
            for step in range(2 * n_experts):
                candidate = (ranked[t, j] + step) % n_experts
                has = False
                for i in range(j):
                    has |= ids[t, i] == candidate
                if not has and (load[candidate] < room or step >= n_experts):
                    e = candidate
                    break
            ids[t, j] = e
            load[e] += 1


@njit
def assign_rows(cost, room):
    """The cheapest assignment of rows to columns, at most `room` to each: int64 [rows].

    Successive shortest paths with node prices (Ahuja, Magnanti, Orlin, Network Flows, 9.7), on the graph of the columns
    alone: going from column a to b costs what moving the row that moves most cheaply does; of equal ones the later row
    gives way. O(rows · columns²).
    """
    n_rows, n = cost.shape
    column = np.full(n_rows, -1)
    load = np.zeros(n, np.int64)
    held = np.empty((n, room), np.int64)            # rows of a column
    move = np.full((n, n), np.inf)                  # cheapest move from a to b,
    mover = np.full((n, n), -1)                     # and the row that makes it
    price = np.zeros(n)
    distance = np.empty(n)
    before = np.empty(n, np.int64)
    final = np.empty(n, np.bool_)
    for row in range(n_rows):
        for b in range(n):
            distance[b] = cost[row, b] - price[b]
            before[b] = -1
            final[b] = False
        at = -1
        while True:
            at = -1
            for b in range(n):
                if not final[b] and (at < 0 or distance[b] < distance[at]):
                    at = b
            final[at] = True
            if load[at] < room:
                break
            for b in range(n):
                if not final[b]:
                    through = distance[at] + max(0.0, move[at, b] + price[at] - price[b])
                    if through < distance[b]:
                        distance[b] = through
                        before[b] = at
        for b in range(n):
            if final[b]:
                price[b] += distance[b] - distance[at]
        while at >= 0:
            came = before[at]
            guest = row if came < 0 else mover[came, at]
            if came >= 0:
                _leave(cost, guest, came, held, load, move, mover)
            _enter(cost, guest, at, held, load, move, mover)
            column[guest] = at
            at = came
    return column


@inlined
def _enter(cost, row, at, held, load, move, mover):
    held[at, load[at]] = row
    load[at] += 1
    for b in range(cost.shape[1]):
        step = cost[row, b] - cost[row, at]
        if b != at and (step < move[at, b] or (step == move[at, b] and row > mover[at, b])):
            move[at, b] = step
            mover[at, b] = row


@inlined
def _leave(cost, row, at, held, load, move, mover):
    load[at] -= 1
    i = 0
    while held[at, i] != row:
        i += 1
    held[at, i] = held[at, load[at]]
    for b in range(cost.shape[1]):
        if mover[at, b] == row:
            move[at, b] = np.inf
            mover[at, b] = -1
            for i in range(load[at]):
                other = held[at, i]
                step = cost[other, b] - cost[other, at]
                if step < move[at, b] or (step == move[at, b] and other > mover[at, b]):
                    move[at, b] = step
                    mover[at, b] = other
