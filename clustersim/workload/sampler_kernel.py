"""Inner loops of the sampler: normal draws by counter, latent vectors, top-k, alias tables. No parameters are judged here.

Every number is a hash of a key and a counter, so any sequence of any layer can be made alone: no state, and nothing
depends on blocks or workers. Import this module late: importing numba takes half a second.
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clustersim.jit import inlined, njit

KNOTS = 4096                                    # of the normal quantile function, evenly spaced in probability
STEP = np.uint64(0x9E3779B97F4A7C15)            # SplitMix64 (Steele, Lea & Flood 2014): increment and mixing constants
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
LANES = 16                                      # compared at a time: a fixed number, so that it compiles to a few instructions
START = 3                                       # counters 0, 1, 2 of a sequence: topic and the two memories before its start
ARRIVAL, NOISE = 1 << 32, 1 << 33               # counters of an independent token beside those of its draws
TRIES = 64                                      # draws of an expert taken before, after which the rest are looked at one by one


@cache
def quantiles() -> NDArray[np.float32]:
    """Standard normal quantiles at i / KNOTS, float32 [KNOTS + 1], scaled so that drawing between them has variance 1.

    Straight lines between 4,096 knots; the ends are cut at 4.0 deviations.
    """
    inverse = NormalDist().inv_cdf
    knots = np.array([inverse(min(max(i / KNOTS, 3e-5), 1 - 3e-5)) for i in range(KNOTS + 1)])
    a, b = knots[:-1], knots[1:]
    return np.asarray(knots / np.sqrt(((a * a + a * b + b * b) / 3).mean()), np.float32)


def mixed(key: Any, counter: Any) -> Any:
    """64 random bits for a key and a counter; numbers or arrays of uint64."""
    z = key + (counter + np.uint64(1)) * STEP
    z = (z ^ (z >> np.uint64(30))) * MIX_1
    z = (z ^ (z >> np.uint64(27))) * MIX_2
    return z ^ (z >> np.uint64(31))


_mix = inlined(mixed)


@inlined
def _normal(bits, table):
    """A standard normal from 32 random bits."""
    i = bits >> np.uint64(20)
    return table[i] + np.float32(bits & np.uint64(0xFFFFF)) * np.float32(1 / 1048576) * (table[i + np.uint64(1)] - table[i])


@inlined
def _turned(key, j, cosine, sine, table):
    """Dimension j of the normal vector of `key`, at this layer's angle between its two independent copies."""
    bits = _mix(key, np.uint64(j))
    return cosine * _normal(bits >> np.uint64(32), table) + sine * _normal(bits & np.uint64(0xFFFFFFFF), table)


class Mixture(NamedTuple):
    """How the latent vector of a token is put together in one layer; float32."""

    cosine: np.float32          # of the layer's angle between the two copies of everything
    sine: np.float32
    topic: np.float32           # loading of what the sequence is about
    own: np.float32             # loading of what the token brings itself
    fast: np.float32            # loadings of what is remembered of the tokens before it
    slow: np.float32
    keep_fast: np.float32       # what a memory keeps from token to token, and what the token adds to it
    add_fast: np.float32
    keep_slow: np.float32
    add_slow: np.float32
    shared: np.float32          # the two memories come from the same tokens: their correlation c, and sqrt(1 - c^2)
    unshared: np.float32


@inlined
def _start(key, how, table, topic, fast, slow):
    """Topic and memories at the start of a sequence, into topic, fast, slow float32 [dimensions]."""
    for j in range(topic.size):
        topic[j] = how.topic * _turned(_mix(key, np.uint64(0)), j, how.cosine, how.sine, table)
        fast[j] = _turned(_mix(key, np.uint64(1)), j, how.cosine, how.sine, table)
        fresh = _turned(_mix(key, np.uint64(2)), j, how.cosine, how.sine, table)
        slow[j] = how.shared * fast[j] + how.unshared * fresh


@inlined
def _token(key, i, how, table, topic, fast, slow, latent):
    """Latent vector of token i, the next of its sequence, into latent float32 [dimensions]; the memories take it in."""
    own_key = _mix(key, np.uint64(i + START))
    for j in range(latent.size):
        own = _turned(own_key, j, how.cosine, how.sine, table)
        latent[j] = topic[j] + how.own * own + how.fast * fast[j] + how.slow * slow[j]
        fast[j] = how.keep_fast * fast[j] + how.add_fast * own
        slow[j] = how.keep_slow * slow[j] + how.add_slow * own


@inlined
def _square(latent):
    """Mean square of the latent vector."""
    total = np.float32(0)
    for j in range(latent.size):
        total += latent[j] * latent[j]
    return total / np.float32(latent.size)


@njit
def _logits(latent, directions, bias, out):
    """bias + latent . directions, into out float32 [experts]; always in the same order, so always the same number."""
    for e in range(out.size):
        out[e] = bias[e]
    for j in range(0, latent.size, 4):
        a, b, c, d = latent[j], latent[j + 1], latent[j + 2], latent[j + 3]
        for e in range(out.size):
            out[e] = (((out[e] + a * directions[j, e]) + b * directions[j + 1, e]) + c * directions[j + 2, e]) + d * directions[
                j + 3, e
            ]


@njit
def _insert(logits, value, who):
    """The value.size largest logits, largest first, into value and who; of equal ones the lower expert first."""
    k = value.size
    for j in range(k):
        value[j] = -np.inf
    for e in range(logits.size):
        if logits[e] > value[k - 1]:
            x = logits[e]
            j = k - 1
            while j > 0 and value[j - 1] < x:
                value[j] = value[j - 1]
                who[j] = who[j - 1]
                j -= 1
            value[j] = x
            who[j] = e


@njit
def _best(logits, guess, near, at, value, who):
    """As `_insert`, and a new guess of what the smallest of them will be for the next token; near, at: [experts + 1] scratch.

    The guess makes no difference to what is found. Without branches, two to three times faster for many experts: those
    above the guess, ranked by counting how many are larger.
    """
    k = value.size
    n = 0
    for e in range(logits.size):
        at[n] = e
        n += logits[e] > guess
    if n < k or n > 6 * k:
        _insert(logits, value, who)
        return value[k - 1] - np.float32(0.1)
    for i in range(n):
        near[i] = logits[at[i]]
    near[n : n + LANES] = -np.inf
    for j in range(k):
        value[j] = -np.inf
    for i in range(n):
        x = near[i]
        rank = 0
        for first in range(0, n, LANES):
            for j in range(LANES):
                rank += near[first + j] > x
        while rank < k and value[rank] == x:        # an equal one came before
            rank += 1
        if rank < k:
            value[rank] = x
            who[rank] = at[i]
    if n > 2 * k:
        return guess + np.float32(0.02)
    return guess - np.float32(0.05) if 2 * n < 3 * k else guess


@njit
def choose(key, domain, skip, count, directions, bias, how, table, sharpness, ids, weights):
    """Experts and gate weights of pieces of sequences, one after the other, into ids and weights [tokens, top_k].

    key, domain, skip, count: [pieces] key and domain of the sequence, tokens passed over and tokens wanted.
    directions float32 [dimensions, experts]; bias float32 [domains, experts].
    """
    n_dimensions, n_experts = directions.shape
    topic, fast, slow, latent = (np.empty(n_dimensions, np.float32), np.empty(n_dimensions, np.float32),
                                 np.empty(n_dimensions, np.float32), np.empty(n_dimensions, np.float32))
    logits = np.empty(n_experts, np.float32)
    near, at = np.empty(n_experts + LANES, np.float32), np.empty(n_experts + 1, np.int32)
    value, who = np.empty(ids.shape[1], np.float32), np.empty(ids.shape[1], np.int64)
    guess = np.float32(1)                           # of the smallest chosen logit, in deviations from the mean
    row = 0
    for piece in range(key.size):
        _start(key[piece], how, table, topic, fast, slow)
        own_bias = bias[domain[piece]]
        middle, spread = np.float32(own_bias.mean()), np.float32(own_bias.var())
        for i in range(skip[piece] + count[piece]):
            _token(key[piece], i, how, table, topic, fast, slow, latent)
            if i < skip[piece]:
                continue
            _logits(latent, directions, own_bias, logits)
            size = np.sqrt(spread + _square(latent))
            guess = (_best(logits, middle + guess * size, near, at, value, who) - middle) / size
            total = 0.0
            for j in range(value.size):
                ids[row, j] = who[j]
                weights[row, j] = np.exp(sharpness * (value[j] - value[0]))
                total += weights[row, j]
            for j in range(value.size):
                weights[row, j] /= total
            row += 1


@njit
def score(key, domain, skip, count, directions, bias, how, table, sharpness, out):
    """Logits of the same tokens as `choose`, times the sharpness, into out float32 [tokens, experts]."""
    n_dimensions, n_experts = directions.shape
    topic, fast, slow, latent = (np.empty(n_dimensions, np.float32), np.empty(n_dimensions, np.float32),
                                 np.empty(n_dimensions, np.float32), np.empty(n_dimensions, np.float32))
    logits = np.empty(n_experts, np.float32)
    row = 0
    for piece in range(key.size):
        _start(key[piece], how, table, topic, fast, slow)
        own_bias = bias[domain[piece]]
        for i in range(skip[piece] + count[piece]):
            _token(key[piece], i, how, table, topic, fast, slow, latent)
            if i >= skip[piece]:
                _logits(latent, directions, own_bias, logits)
                for e in range(n_experts):
                    out[row, e] = sharpness * logits[e]
                row += 1


@njit
def settle(key, directions, used, slope, rounds, points, n_choices, table, bias):
    """Move bias float32 [experts] until expert e is among the n_choices best for a fraction used[e] of all latent vectors.

    Robbins & Monro (1951): each round compares a fresh sample of `points` vectors with what is wanted, and moves less
    than the one before; slope is how fast an expert's fraction follows its bias, float [experts].
    """
    n_dimensions, n_experts = directions.shape
    latent, logits = np.empty(n_dimensions, np.float32), np.empty(n_experts, np.float32)
    near, at = np.empty(n_experts + LANES, np.float32), np.empty(n_experts + 1, np.int32)
    value, who = np.empty(n_choices, np.float32), np.empty(n_choices, np.int64)
    found = np.empty(n_experts)
    guess = np.float32(1)
    for turn in range(rounds):
        found[:] = 0
        middle, spread = np.float32(bias.mean()), np.float32(bias.var())
        for i in range(points):
            own_key = _mix(key, np.uint64(turn * points + i))
            for j in range(n_dimensions):
                latent[j] = _normal(_mix(own_key, np.uint64(j)) >> np.uint64(32), table)
            _logits(latent, directions, bias, logits)
            size = np.sqrt(spread + _square(latent))
            guess = (_best(logits, middle + guess * size, near, at, value, who) - middle) / size
            for j in range(n_choices):
                found[who[j]] += 1
        for e in range(n_experts):
            step = (used[e] - found[e] / points) / slope[e]
            bias[e] += np.float32(0.8 / (turn + 1) * min(1.0, max(-1.0, step)))


# ---- independent tokens


def alias_tables(weights: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Walker's tables (Vose 1991) of each row of weights [domains, experts]: (keep, other), so that slot e stands for expert e
    with probability keep[e] and for other[e] with the rest."""
    n = weights.shape[1]
    keep, other = np.ones(weights.shape, np.float32), np.tile(np.arange(n, dtype=np.int32), (len(weights), 1))
    for row, p in enumerate(weights / weights.sum(1, keepdims=True) * n):
        height = p.copy()
        small, large = list(np.flatnonzero(height < 1)), list(np.flatnonzero(height >= 1))
        while small and large:
            a, b = small.pop(), large[-1]
            keep[row, a], other[row, a] = height[a], b
            height[b] -= 1 - height[a]
            if height[b] < 1:
                small.append(large.pop())
    return keep, other


@njit
def choose_independent(key, domain, skip, count, keep, other, heavy, sharpness, ids, weights):
    """As `choose`, for tokens that know nothing of each other: top_k experts without replacement (Plackett-Luce).

    Drawn from alias tables, an expert that was drawn before is drawn again. Gate weights are those of the race that this
    is: arrival times are sums of exponentials, scores minus their logarithms. heavy float [domains, experts]: weights.
    """
    n_experts, k = keep.shape[1], ids.shape[1]
    scale = np.float64(n_experts) / 4294967296.0
    row = 0
    for piece in range(key.size):
        d = domain[piece]
        total = heavy[d].sum()
        for i in range(skip[piece], skip[piece] + count[piece]):
            own_key = _mix(key[piece], np.uint64(i + START))
            counter = np.uint64(0)
            left, time, sum_weights = total, 0.0, 0.0
            for j in range(k):
                tries = 0
                again = True
                while again and tries < TRIES:
                    bits = _mix(own_key, counter)
                    counter += np.uint64(1)
                    tries += 1
                    slot = np.float64(bits >> np.uint64(32)) * scale
                    e = int(slot)
                    if slot - e >= keep[d, e]:
                        e = other[d, e]
                    again = False
                    for before in range(j):
                        again |= ids[row, before] == e
                if again:
                    e = _one_of_the_rest(heavy[d], ids[row, :j], left, own_key, counter)
                    counter += np.uint64(1)
                ids[row, j] = e
                u = (np.float64(_mix(own_key, np.uint64(ARRIVAL + j)) >> np.uint64(11)) + 0.5) / 9007199254740992.0
                time += -np.log(u) / max(left, 1e-300)
                left = max(left - heavy[d, e], 0.0)
                weights[row, j] = time
            first = weights[row, 0]
            for j in range(k):
                weights[row, j] = (weights[row, j] / first) ** -sharpness
                sum_weights += weights[row, j]
            for j in range(k):
                weights[row, j] /= sum_weights
            row += 1


@njit
def _one_of_the_rest(heavy, taken, left, key, counter):
    """An expert not taken, with probability proportional to its weight, where redrawing would take too long."""
    u = (np.float64(_mix(key, counter) >> np.uint64(11)) + 0.5) / 9007199254740992.0
    rest = 0.0
    for e in range(heavy.size):
        free = True
        for t in taken:
            free &= t != e
        if free:
            rest += heavy[e]
    last, running = -1, 0.0
    for e in range(heavy.size):
        free = True
        for t in taken:
            free &= t != e
        if free:
            last = e
            running += heavy[e]
            if running > u * rest:
                break
    return last


@njit
def score_independent(key, domain, skip, count, heavy, sharpness, out):
    """Scores of independent tokens, into out float32 [tokens, experts]: (log weight + Gumbel noise) times the sharpness.

    Their best top_k have the distribution of `choose_independent`, without being the same draws.
    """
    row = 0
    for piece in range(key.size):
        d = domain[piece]
        for i in range(skip[piece], skip[piece] + count[piece]):
            own_key = _mix(key[piece], np.uint64(i + START))
            for e in range(heavy.shape[1]):
                u = (np.float64(_mix(own_key, np.uint64(NOISE + e)) >> np.uint64(11)) + 0.5) / 9007199254740992.0
                out[row, e] = sharpness * (np.log(heavy[d, e]) - np.log(-np.log(u)))
            row += 1
