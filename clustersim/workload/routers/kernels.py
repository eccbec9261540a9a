"""The inner loops of the routers: the best few of each row of scores, compiled. Chooses; knows no router's rule.

Ties everywhere: the larger value first, of equal ones the lower index. Import this module late: importing numba takes
half a second and the first compilation some seconds. One file, because numba's cache looks only at the file of the
function that is called.
"""

from __future__ import annotations

import math

import numpy as np

from clustersim.jit import inlined, njit

FEW = 64            # so many candidates are ranked against each other; more are inserted one by one


@inlined
def _insert(value, name, n, k, out, out_name):
    """The k largest of value[:n], sorted, and their names, to out and out_name. Names rise along `value`."""
    have = 0
    for i in range(n):
        v = value[i]
        if have < k:
            j = have
            have += 1
        elif v > out[k - 1]:
            j = k - 1
        else:
            continue
        while j > 0 and out[j - 1] < v:
            out[j] = out[j - 1]
            out_name[j] = out_name[j - 1]
            j -= 1
        out[j] = v
        out_name[j] = name[i]


@inlined
def _ranked(value, name, n, out_name):
    """All names by falling value, each put where its rank is, which leaves the processor nothing to guess.

    Whether that worked: not where two values are equal. `value` has room for 16 more than n.
    """
    width = (np.int64(n) + 15) // 16
    for j in range(np.int64(n), 16 * width):
        value[j] = -np.inf
    total = np.int64(0)
    for i in range(n):
        v = value[i]
        rank = np.int32(0)
        for c in range(width):
            for lane in range(16):
                rank += np.int32(value[16 * c + lane] > v)
        out_name[rank] = name[i]
        total += rank
    return 2 * total == np.int64(n) * (np.int64(n) - 1)


@njit
def top_rows(scores, bias, k, ids):
    """The k largest of every row of scores + bias, largest first: ids int64 [rows, k].

    The k-th largest of the maxima of interleaved lanes is a number that at least k values reach, and few more; they
    stand in the lanes whose maximum reaches it.
    """
    n_rows, n = scores.shape
    lanes = 16
    while lanes < 2 * k:
        lanes *= 2
    while lanes > 16 and n % lanes:
        lanes //= 2
    sel = np.empty(n, scores.dtype)
    value = np.empty(n + 16, scores.dtype)
    name = np.empty(n + 1, np.int64)
    out = np.empty(k, scores.dtype)
    out_name = np.empty(n + 16, np.int64)
    top = np.empty(lanes, scores.dtype)
    numbers = np.arange(n)
    for t in range(n_rows):
        row = scores[t]
        for e in range(n):
            sel[e] = row[e] + bias[e]
        few = np.uint64(0)
        if n % lanes == 0 and n >= 2 * lanes and k < lanes:
            for lane in range(lanes):
                top[lane] = sel[lane]
            for begin in range(lanes, n, lanes):
                for lane in range(lanes):
                    v = sel[begin + lane]
                    top[lane] = v if v > top[lane] else top[lane]
            low = row.dtype.type(-np.inf)
            for i in range(lanes):
                v = top[i]
                reach = np.int32(0)
                for j in range(lanes):
                    reach += np.int32(top[j] >= v)
                v = v if reach >= k else low
                low = v if v > low else low
            for lane in range(lanes):
                if top[lane] >= low:
                    for e in range(lane, n, lanes):
                        value[few] = sel[e]
                        name[few] = e
                        few += np.uint64(sel[e] >= low)
        else:
            for e in range(n):
                value[e] = sel[e]
                name[e] = e
            few = np.uint64(n)
        if few > FEW or not _ranked(value, name, few, out_name):
            _insert(sel, numbers, n, k, out, out_name)
        for j in range(k):
            ids[t, j] = out_name[j]


@njit
def grouped_rows(scores, bias, k, n_groups, keep, members, zero, ids):
    """The k largest of every row of scores + bias, from the `keep` groups whose `members` best sum highest.

    Groups are equal runs of neighbours. zero: experts of other groups compete with value 0 instead of not at all.
    """
    n_rows, n = scores.shape
    size = n // n_groups
    sel = np.empty(n, scores.dtype)
    group = sel.reshape(n_groups, size)
    value = np.empty(n + 16, scores.dtype)
    name = np.empty(n + 1, np.int64)
    out = np.empty(max(k, members), scores.dtype)
    out_name = np.empty(n + 16, np.int64)
    total = np.empty(n_groups, scores.dtype)
    second = np.empty(n_groups, scores.dtype)
    numbers = np.arange(size)
    for t in range(n_rows):
        row = scores[t]
        for e in range(n):
            sel[e] = row[e] + bias[e]
        for g in range(n_groups):
            if members <= 2:
                best = next_best = row.dtype.type(-np.inf)
                for j in range(size):
                    v = group[g, j]
                    less = v if v < best else best
                    best = v if v > best else best
                    next_best = less if less > next_best else next_best
                second[g] = next_best
                total[g] = best + next_best if members == 2 else best
            else:
                _insert(group[g], numbers, size, members, out, out_name)
                total[g] = out[0]
                for j in range(1, members):
                    total[g] += out[j]
        low = row.dtype.type(np.inf)        # the second best of every chosen group: at least 2 keep values reach it
        few = np.uint64(0)
        for g in range(n_groups):
            rank = np.int32(0)
            v = total[g]
            for other in range(g):
                rank += np.int32(total[other] >= v)
            for other in range(g + 1, n_groups):
                rank += np.int32(total[other] > v)
            name[few] = g
            few += np.uint64(rank < keep)
            v = second[g] if rank < keep else low
            low = v if v < low else low
        if members > 2 or size < 2 or 2 * keep < k:
            low = row.dtype.type(-np.inf)
        if zero:
            for g in range(n_groups):
                chosen = False
                for j in range(keep):
                    chosen |= name[j] == g
                if not chosen:
                    for j in range(size):
                        group[g, j] = 0.0
            for e in range(n):
                value[e] = sel[e]
                name[e] = e
            few = np.uint64(n)
        else:
            for j in range(keep):
                out_name[j] = name[j] * size
            few = np.uint64(0)
            for j in range(keep):
                for e in range(out_name[j], out_name[j] + size):
                    value[few] = sel[e]
                    name[few] = e
                    few += np.uint64(sel[e] >= low)
        if few > FEW or not _ranked(value, name, few, out_name):
            _insert(value, name, few, k, out, out_name)
        for j in range(k):
            ids[t, j] = out_name[j]


@njit
def weigh_rows(values, ids, renormalise, scale, weights):
    """Weights of the chosen: their values, over their sum where renormalised, times scale. None chosen: 0."""
    for t in range(ids.shape[0]):
        total = 0.0
        for j in range(ids.shape[1]):
            e = ids[t, j]
            w = np.float64(values[t, e]) if e >= 0 else 0.0
            weights[t, j] = w
            total += w
        factor = scale / (total + 1e-20) if renormalise else scale
        for j in range(ids.shape[1]):
            weights[t, j] *= factor


@njit
def softmax_rows(scores, ids, weights):
    """Weights of the chosen: the softmax over their scores alone. None is missing."""
    for t in range(ids.shape[0]):
        top = np.float64(scores[t, ids[t, 0]])
        for j in range(1, ids.shape[1]):
            top = max(top, np.float64(scores[t, ids[t, j]]))
        total = 0.0
        for j in range(ids.shape[1]):
            w = math.exp(np.float64(scores[t, ids[t, j]]) - top)
            weights[t, j] = w
            total += w
        for j in range(ids.shape[1]):
            weights[t, j] /= total


@njit
def falling_rows(sel, floor, target, most, ids):
    """Every row's entries above `floor` in falling order, until their sum reaches `target` or there are `most`.

    Returns the largest number of entries in a row; ids int64 [rows, most] must be filled with -1.
    """
    n_rows, n = sel.shape
    heap = np.empty(n, np.int64)
    widest = 0
    for t in range(n_rows):
        row = sel[t]
        size = 0
        for e in range(n):
            if row[e] > floor:
                heap[size] = e
                size += 1
        for start in range(size // 2 - 1, -1, -1):
            _sift(row, heap, start, size)
        have, total = 0, 0.0
        while size > 0 and have < most and total < target:
            ids[t, have] = heap[0]
            total += row[heap[0]]
            have += 1
            size -= 1
            heap[0] = heap[size]
            _sift(row, heap, 0, size)
        widest = max(widest, have)
    return widest


@inlined
def _sift(row, heap, start, size):
    """Move heap[start] down to where no child comes before it: larger first, of equal ones the lower index."""
    at = start
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        a, b = heap[child], heap[min(child + 1, size - 1)]
        if row[b] > row[a] or (row[b] == row[a] and b < a):
            child += 1
            a = b
        e = heap[at]
        if row[e] > row[a] or (row[e] == row[a] and e < a):
            break
        heap[at] = a
        heap[child] = e
        at = child


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
