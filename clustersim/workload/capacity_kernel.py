"""The inner loops of the capacity policies, compiled by numba: queues, the largest of each queue, the next expert with room.

A choice stands in the queue of its pool of tokens and its unit (an expert or a GPU): queue = pool * units + unit.
Import this module late: importing numba takes half a second.
"""

from __future__ import annotations

import numpy as np

from clustersim.jit import lean, njit


@lean
def count_rows(slots, source, rows):
    """rows[source, slot] += 1 for every choice of slots [tokens, top_k]; -1 is none."""
    for t in range(slots.shape[0]):
        row = rows[source[t]]
        for j in range(slots.shape[1]):
            if slots[t, j] >= 0:
                row[slots[t, j]] += 1


@njit
def line_up(unit, pool, n_units, tokens, by_choice, count, place):
    """Line the choices of `tokens` up behind the `count` that stand in each queue already; both are written to.

    Token by token, or first all first choices, then all second ones (`by_choice`).
    """
    n, k = tokens.size, unit.shape[1]
    for i in range(n * k):
        if by_choice:
            t, j = tokens[i % n], i // n
        else:
            t, j = tokens[i // k], i % k
        if unit[t, j] >= 0:
            queue = pool[t] * n_units + unit[t, j]
            place[t, j] = count[queue]
            count[queue] += 1


@njit
def keep_largest(unit, pool, n_units, value, room, kept):
    """Mark in `kept` the `room[queue]` choices of largest value in each queue; of equal ones the first by token."""
    n, k = unit.shape
    count = np.zeros(room.size, np.int64)
    for t in range(n):
        for j in range(k):
            if unit[t, j] >= 0:
                count[pool[t] * n_units + unit[t, j]] += 1
    begin = np.full(room.size, -1, np.int64)            # where the queues that are too long stand in `rival`
    total = 0
    for queue in range(room.size):
        if count[queue] > room[queue]:
            begin[queue] = total
            total += count[queue]
    rival, worth = np.empty(total, np.int64), np.empty(total, np.float64)
    end = begin.copy()
    for t in range(n):
        for j in range(k):
            if unit[t, j] >= 0:
                queue = pool[t] * n_units + unit[t, j]
                if begin[queue] < 0:
                    kept[t, j] = True
                else:
                    rival[end[queue]] = t * k + j
                    worth[end[queue]] = value[t, j]
                    end[queue] += 1
    for queue in range(room.size):
        if begin[queue] >= 0 and room[queue] > 0:
            values = worth[begin[queue] : end[queue]]
            bar = np.partition(values, values.size - room[queue])[values.size - room[queue]]
            spare = room[queue] - np.count_nonzero(values > bar)        # places for those that are exactly at the bar
            for i in range(values.size):
                if values[i] > bar or (values[i] == bar and spare > 0):
                    spare -= values[i] == bar
                    which = rival[begin[queue] + i]
                    kept[which // k, which % k] = True


@njit
def take_next(asked, assigned, first, scores, pool, left):
    """Give the dropped choices of tokens first, first + 1, ... the best-scored expert that has room and is not yet theirs.

    Token by token; `scores` [some tokens, experts], `left` [pools, experts] places. `assigned` and `left` are written to.
    """
    k = asked.shape[1]
    for i in range(scores.shape[0]):
        t = first + i
        for j in range(k):
            if asked[t, j] < 0 or assigned[t, j] >= 0:
                continue
            best, best_score = -1, -np.inf
            for expert in range(scores.shape[1]):
                if scores[i, expert] > best_score and left[pool[t], expert] > 0:
                    held = False
                    for other in range(k):
                        held |= assigned[t, other] == expert
                    if not held:
                        best, best_score = expert, scores[i, expert]
            if best >= 0:
                assigned[t, j] = best
                left[pool[t], best] -= 1
