"""The inner loops of the routers: the best few of each row of scores, compiled. Chooses; knows no router's rule.

Ties everywhere: the larger value first, of equal ones the lower index. Import this module late: importing numba takes
half a second and the first compilation some seconds.
"""

from __future__ import annotations

import math

import numpy as np

from clustersim.jit import inlined, njit

FEW = 64            # so many candidates are ranked against each other; more are inserted one by one
# Sigmoids in float32 are right to 4 units of their last digit, 5e-7 of them, and to less than one above BENT. Those of scores up
# to BENT that are MARGIN apart, or up to FLAT and WIDE_MARGIN apart, differ by more than twice that. Others are not told apart.
BENT, MARGIN, FLAT, WIDE_MARGIN, STEEP = 6.0, 1e-3, 12.0, 0.25, 60.0
APART = 1e-5        # sums of two sigmoids that differ by more are in the order of their scores, whatever the last digits


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
def two_best_rows(scores, n_groups, two):
    """The two largest scores of every group of neighbours, two [rows, 2 groups]: all the largest, then all the second ones.

    Groups are of at least two. False where a score is no number.
    """
    n_rows, n = scores.shape
    size = n // n_groups
    half = size // 2
    high, low = np.empty(half, scores.dtype), np.empty(half, scores.dtype)
    faults = np.int32(0)
    for t in range(n_rows):
        row = scores[t]
        for e in range(n):
            faults |= np.int32(row[e] != row[e])
        for g in range(n_groups):
            group = row[g * size : (g + 1) * size]
            for j in range(half):                   # pair by pair, which is done side by side
                a, b = group[j], group[half + j]
                high[j] = a if a > b else b
                low[j] = a if a < b else b
            best = next_best = scores.dtype.type(-np.inf)
            if size % 2:
                best = group[size - 1]
            for j in range(half):
                v, w = high[j], low[j]
                less = v if v < best else best
                best = v if v > best else best
                less = less if less > w else w
                next_best = less if less > next_best else next_best
            two[t, g] = best
            two[t, n_groups + g] = next_best
    return faults == 0


@njit
def candidate_rows(scores, two, sigmoid, keep, members, k, value, name, start, again):
    """The few scores of every row among which its k best are, to value and name: those of row t at start[t] up to start[t + 1].

    They are the scores of the `keep` groups whose `members` (1 or 2) best sum highest by sigmoid, down to a margin below the
    least second best of these groups. two, sigmoid: see `two_best_rows`, and the sigmoid of that. The sigmoid rises with the
    score but for its last digits, so a score that is a margin below another is not the better one. Rows for which that is too
    close to call go to `again` instead; their number is returned.
    """
    n_rows, n = scores.shape
    n_groups = two.shape[1] // 2
    size = n // n_groups
    total = np.empty(n_groups, scores.dtype)
    margin, wide_margin = scores.dtype.type(MARGIN), scores.dtype.type(WIDE_MARGIN)
    at = np.uint64(0)
    n_again = 0
    start[0] = 0
    for t in range(n_rows):
        row = scores[t]
        for g in range(n_groups):
            total[g] = sigmoid[t, g] + sigmoid[t, n_groups + g] if members == 2 else sigmoid[t, g]
        low = worst = scores.dtype.type(np.inf)         # of the chosen groups: the least second best, the least sum
        chosen = np.int32(0)                            # more than `keep` where sums are equal
        top = out = scores.dtype.type(-np.inf)          # their largest score; the largest sum of the others
        for g in range(n_groups):
            rank = np.int32(0)
            v = total[g]
            for other in range(n_groups):
                rank += np.int32(total[other] > v)
            inside = rank < keep
            chosen += np.int32(inside)
            w = two[t, n_groups + g] if inside else low
            low = w if w < low else low
            w = two[t, g] if inside else top
            top = w if w > top else top
            w = v if inside else worst
            worst = w if w < worst else worst
            w = out if inside else v
            out = w if w > out else out
        if chosen == keep and worst - out > APART and top <= FLAT and low >= -STEEP:
            low -= margin if top <= BENT else wide_margin
            low = low if 2 * keep >= k else scores.dtype.type(-np.inf)
            first = at
            for g in range(n_groups):
                if total[g] >= worst:
                    for e in range(g * size, (g + 1) * size):
                        name[at] = e
                        at += np.uint64(row[e] >= low)
            for i in range(first, at):
                value[i] = row[name[i]]
        else:
            again[n_again] = t
            n_again += 1
        start[t + 1] = at
    return n_again


@njit
def rank_rows(value, name, start, k, renormalise, scale, lanes, ids, weights):
    """The k best of every row's candidates (see `candidate_rows`) with their weights; rows without any are left alone.

    lanes: 16, which this must not know, or it is not compiled to a few instructions.
    """
    most = 0
    for t in range(ids.shape[0]):
        most = max(most, start[t + 1] - start[t])
    v, place = np.empty(most + lanes, value.dtype), np.empty(most + lanes, np.int32)
    best, best_name = np.empty(most + k, value.dtype), np.empty(most + k, name.dtype)
    for t in range(ids.shape[0]):
        first = start[t]
        n = start[t + 1] - first
        if n == 0:
            continue
        width = (n + lanes - 1) // lanes * lanes
        for j in range(n):
            v[j] = value[first + j]
        for j in range(width):
            place[j] = 0
        for i in range(n):
            x = v[i]
            for j in range(width):
                place[j] += np.int32(x > v[j])
        total = 0
        for i in range(n):
            total += place[i]
            best[place[i]] = v[i]
            best_name[place[i]] = name[first + i]
        if 2 * total != n * (n - 1):                    # two are equal
            _insert(value[first:], name[first:], n, k, best, best_name)
        whole = 0.0
        for j in range(k):
            ids[t, j] = best_name[j]
            w = np.float64(best[j])
            weights[t, j] = w
            whole += w
        factor = scale / (whole + 1e-20) if renormalise else scale
        for j in range(k):
            weights[t, j] *= factor


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
