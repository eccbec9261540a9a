"""The inner loops of placement: choices one after the other, and moves of experts priced by what they change. No rules here.

A move exchanges the GPUs of two slots, or gives a slot to another expert. Only the tokens of the experts in question are
looked at again; they are found through a list per expert. What a move changed is written down, so that it can be taken back.

Import this module late: importing numba takes half a second and the first compilation some seconds.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clustersim.jit import inlined, njit
from clustersim.types import Floats, Ints

CHOICE, GPU, NODE = range(3)                # what of a token is sent once
TOKEN_HASH, NEAREST = range(2)
SMOOTH = 0.02                               # weight of the evenness of links and GPUs beside the busiest of them


class Tokens(NamedTuple):
    """A past and a placement, token by token, and what it costs."""

    asked: NDArray[np.int32]                # [tokens, top_k] expert; -1 none
    source: NDArray[np.int32]               # [tokens] GPU
    step: NDArray[np.int32]                 # [tokens]
    hashed: Ints                            # [tokens]
    first: Ints                             # [experts + 1] the choices of expert e are rows first[e] to first[e + 1] - 1 of
    token_of: NDArray[np.int32]             # these two
    choice_of: NDArray[np.int32]
    node_of: NDArray[np.int32]              # [gpus]
    route_start: Ints                       # see objective.Price
    route_links: NDArray[np.int32]
    route_weights: Floats
    forwarder: NDArray[np.int32]
    dispatch_s: Floats
    combine_s: Floats
    rates: Floats                           # seconds: arithmetic and memory per token, per slot in use, per GPU in use
    choice: Ints                            # unit and replica rule
    weights: Floats                         # of seconds, load, crossing, migration; quantile; 1 / seconds of the start
    held: Ints                              # [gpus, experts] 1 where the weights are already
    # what moves change
    expert_of: Ints                         # [slots]
    gpu_of: Ints                            # [slots]
    replicas: Ints                           # [experts] replicas
    member: Ints                            # [experts, most] their slots, rising
    slot_at: NDArray[np.int32]              # [tokens, top_k] slot that a choice goes to
    gpu_at: NDArray[np.int32]               # [tokens, top_k] and its GPU
    slot_tokens: Ints                       # [steps, slots]
    gpu_tokens: Floats                      # [steps, gpus]
    dispatched: Floats                      # [steps, links] copies on their way to experts
    combined: Floats                        # [steps, links] copies on their way home
    crossing: Floats                        # [1] copies between nodes
    # scratch
    log: NDArray[np.int32]                  # [.., 4] token, choice, slot and GPU before the move
    logged: Ints                            # [1]
    saved: Floats                           # [steps, 2 links + gpus]
    seconds: Floats                         # [steps] of the last evaluation
    used: Floats                            # [gpus]


class Loads(NamedTuple):
    """A load and a placement, replicas sharing equally."""

    load: Floats                            # [steps, experts], in means of a GPU's load of a step
    expert_of: Ints
    gpu_of: Ints
    replicas: Ints
    member: Ints
    gpu_load: Floats                        # [steps, gpus]
    weights: Floats                         # of migration; quantile of the steps
    held: Ints
    peaks: Floats                           # [steps] of the last evaluation


# ---- choices one after the other


@njit
def to_least_loaded(turns, asked, slot, start, count, order, gpu_of, load):
    """Fill `slot` where it is -1 and something is asked, row after row of `turns`; `load` [gpus] grows on the way."""
    for i in range(turns.size):
        token = turns[i]
        for j in range(asked.shape[1]):
            expert = asked[token, j]
            if expert < 0 or slot[token, j] >= 0:
                continue
            best = order[start[expert]]
            for r in range(1, count[expert]):
                other = order[start[expert] + r]
                if load[gpu_of[other]] < load[gpu_of[best]]:
                    best = other
            slot[token, j] = best
            load[gpu_of[best]] += 1


# ---- members of an expert


@inlined
def _leave(count, member, expert, slot):
    """Take `slot` out of the list of `expert`."""
    n = count[expert]
    i = 0
    while member[expert, i] != slot:
        i += 1
    while i < n - 1:
        member[expert, i] = member[expert, i + 1]
        i += 1
    count[expert] = n - 1


@inlined
def _join(count, member, expert, slot):
    """Put `slot` into the list of `expert`, in order."""
    i = count[expert]
    while i > 0 and member[expert, i - 1] > slot:
        member[expert, i] = member[expert, i - 1]
        i -= 1
    member[expert, i] = slot
    count[expert] += 1


# ---- tokens


@njit
def seat(s, expert):
    """Send the choices of an expert where they go now; what changes is written down in the log.

    A choice needs what the token's other choices do not need anyway: no copy goes to a GPU, or node, that another is on.
    """
    # by their own names: an array taken out of a tuple in a loop costs a count of references every time
    token_of, choice_of, source_of, step_of, hashed = s.token_of, s.choice_of, s.source, s.step, s.hashed
    node_of, forwarder, slot_at, gpu_at, gpu_of = s.node_of, s.forwarder, s.slot_at, s.gpu_at, s.gpu_of
    slot_tokens, gpu_tokens, dispatched, combined = s.slot_tokens, s.gpu_tokens, s.dispatched, s.combined
    route_start, route_links, route_weights, member, log = s.route_start, s.route_links, s.route_weights, s.member, s.log
    n, unit, nearest, top_k, n_gpus = s.replicas[expert], s.choice[0], s.choice[1] == NEAREST, s.asked.shape[1], s.node_of.size
    logged, crossing = s.logged[0], s.crossing[0]
    for row in range(s.first[expert], s.first[expert + 1]):
        token, j = token_of[row], choice_of[row]
        source, step = source_of[token], step_of[token]
        home = node_of[source]
        slot = member[expert, hashed[token] % n if n > 1 else 0]
        if nearest and n > 1:
            here, near = 0, 0
            for i in range(n):
                here += gpu_of[member[expert, i]] == source
                near += node_of[gpu_of[member[expert, i]]] == home
            if near > 0:
                place = hashed[token] % (here if here > 0 else near)
                for i in range(n):
                    gpu = gpu_of[member[expert, i]]
                    if (gpu == source) if here > 0 else (node_of[gpu] == home):
                        if place == 0:
                            slot = member[expert, i]
                        place -= 1
        gpu, old_slot, old_gpu = gpu_of[slot], slot_at[token, j], gpu_at[token, j]
        if old_slot == slot and old_gpu == gpu:
            continue
        log[logged, 0], log[logged, 1], log[logged, 2], log[logged, 3] = token, j, old_slot, old_gpu
        logged += 1
        if old_slot != slot:
            if old_slot >= 0:
                slot_tokens[step, old_slot] -= 1
            slot_tokens[step, slot] += 1
            slot_at[token, j] = slot
        gpu_at[token, j] = gpu
        for turn in range(2 if old_gpu != gpu else 0):
            at = old_gpu if turn == 0 else gpu
            copies = -1.0 if turn == 0 else 1.0
            if at < 0:
                continue
            gpu_tokens[step, at] += copies
            node = node_of[at]
            same_gpu = same_node = False
            if unit != CHOICE:
                for i in range(top_k):
                    other = gpu_at[token, i]
                    if i != j and other >= 0:
                        same_gpu |= other == at
                        same_node |= node_of[other] == node
            if same_gpu:
                continue
            relays = unit == NODE and node != home
            hop = forwarder[source, node] if relays else source     # from which the copy comes to the GPU
            if node != home and not (relays and same_node):
                crossing += copies
            for leg in range(2):
                a, b = (source, hop) if leg == 0 else (hop, at)
                if a == b or (leg == 0 and same_node):
                    continue
                for i in range(route_start[a * n_gpus + b], route_start[a * n_gpus + b + 1]):
                    dispatched[step, route_links[i]] += copies * route_weights[i]
                for i in range(route_start[b * n_gpus + a], route_start[b * n_gpus + a + 1]):
                    combined[step, route_links[i]] += copies * route_weights[i]
    s.logged[0], s.crossing[0] = logged, crossing


@njit
def _change(s, slot, expert, gpu):
    """Give a slot another expert or another GPU; the tokens do not follow yet."""
    old = s.expert_of[slot]
    if old != expert:
        _leave(s.replicas, s.member, old, slot)
        _join(s.replicas, s.member, expert, slot)
        s.expert_of[slot] = expert
    s.gpu_of[slot] = gpu


@njit
def value_of(s):
    """The weighted sum that is to become small; the seconds of each step are left in `seconds`."""
    n_steps, n_links = s.dispatched.shape
    n_gpus, n_slots = s.node_of.size, s.gpu_of.size
    even = 0.0
    for step in range(n_steps):
        out = home = busiest = 0.0
        squares = total = 0.0
        for i in range(n_links):
            there, back = s.dispatched[step, i] * s.dispatch_s[i], s.combined[step, i] * s.combine_s[i]
            out, home = max(out, there), max(home, back)
            squares += there * there + back * back
            total += there + back
        s.used[:] = 0
        for slot in range(n_slots):
            if s.slot_tokens[step, slot] > 0:
                s.used[s.gpu_of[slot]] += 1
        for gpu in range(n_gpus):
            tokens = s.gpu_tokens[step, gpu]
            time = max(s.rates[0] * tokens, s.rates[2] * s.used[gpu] + s.rates[1] * tokens) + s.rates[3] * (tokens > 0)
            busiest = max(busiest, time)
            squares += time * time
            total += time
        s.seconds[step] = out + busiest + home
        even += squares / total if total > 0 else 0.0
    value = 0.0
    if s.weights[0] > 0:
        value += s.weights[0] * (_summed_up(s.seconds, s.weights[4]) + SMOOTH * even / n_steps) * s.weights[5]
    if s.weights[1] > 0:
        most = 0.0
        every = 0.0
        for gpu in range(n_gpus):
            load = s.gpu_tokens[:, gpu].sum()
            most = max(most, load)
            every += load
        value += s.weights[1] * most * n_gpus / max(every, 1.0)
    value += s.weights[2] * s.crossing[0] / max(1, s.source.size)
    if s.weights[3] > 0:
        value += s.weights[3] * _moved(s.expert_of, s.gpu_of, s.held) / n_slots
    return value


@njit
def _summed_up(values, quantile):
    """Mean, or a quantile between order statistics, of the steps."""
    if quantile < 0:
        return values.mean()
    ordered = np.sort(values)
    place = quantile * (values.size - 1)
    low = math.floor(place)
    high = min(low + 1, values.size - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@inlined
def _moved(expert_of, gpu_of, held):
    n = 0
    for slot in range(gpu_of.size):
        n += 1 - held[gpu_of[slot], expert_of[slot]]
    return n


@njit
def try_moves(s, a, b, expert, draw, temperature, value, best, best_expert, best_gpu):
    """Try moves one after the other: slots a[i] and b[i] exchange GPUs, or slot a[i] goes to expert[i] where that is not -1.

    A move stays when the value does not rise, or rises by less than -temperature[i] * log(draw[i]). The best placement
    met is copied to `best_expert` and `best_gpu`. Moves that change nothing, or leave an expert without a slot, are skipped.

    Returns:
        value now, best value, moves evaluated, moves kept that lowered the value.
    """
    n_links = s.dispatched.shape[1]
    evaluated = lowered = 0
    for i in range(a.size):
        one, two = a[i], b[i]
        own, gpu = s.expert_of[one], s.gpu_of[one]
        if expert[i] >= 0:
            two = one
            if expert[i] == own or s.replicas[own] < 2:
                continue
        elif gpu == s.gpu_of[two] or own == s.expert_of[two]:
            continue
        other = expert[i] if expert[i] >= 0 else s.expert_of[two]
        other_gpu = s.gpu_of[two]
        s.saved[:, :n_links] = s.dispatched
        s.saved[:, n_links : 2 * n_links] = s.combined
        s.saved[:, 2 * n_links :] = s.gpu_tokens
        crossing = s.crossing[0]
        s.logged[0] = 0
        if two == one:
            _change(s, one, other, gpu)
        else:
            _change(s, one, own, other_gpu)
            _change(s, two, other, gpu)
        seat(s, own)
        seat(s, other)
        new = value_of(s)
        evaluated += 1
        if new <= value or (temperature[i] > 0 and new - value < -temperature[i] * math.log(draw[i])):
            lowered += new < value * (1 - 1e-12)
            value = new
            if new < best:
                best = new
                best_expert[:], best_gpu[:] = s.expert_of, s.gpu_of
            continue
        if two == one:
            _change(s, one, own, gpu)
        else:
            _change(s, one, own, gpu)
            _change(s, two, other, other_gpu)
        for n in range(s.logged[0] - 1, -1, -1):
            token, j = s.log[n, 0], s.log[n, 1]
            step = s.step[token]
            s.slot_tokens[step, s.slot_at[token, j]] -= 1
            s.slot_tokens[step, s.log[n, 2]] += 1
            s.slot_at[token, j], s.gpu_at[token, j] = s.log[n, 2], s.log[n, 3]
        s.dispatched[:] = s.saved[:, :n_links]
        s.combined[:] = s.saved[:, n_links : 2 * n_links]
        s.gpu_tokens[:] = s.saved[:, 2 * n_links :]
        s.crossing[0] = crossing
    return value, best, evaluated, lowered


# ---- loads alone


@njit
def share_all(s):
    """The load of every GPU anew."""
    s.gpu_load[:] = 0
    for slot in range(s.gpu_of.size):
        _share(s, slot, 1.0)


@inlined
def _share(s, slot, sign):
    """Add or take away what a slot carries."""
    expert = s.expert_of[slot]
    for step in range(s.load.shape[0]):
        s.gpu_load[step, s.gpu_of[slot]] += sign * s.load[step, expert] / s.replicas[expert]


@njit
def _share_expert(s, expert, sign):
    for i in range(s.replicas[expert]):
        _share(s, s.member[expert, i], sign)


@njit
def peak_of(s):
    """The busiest GPU's load over the mean, mean or quantile of the steps, with a little of its evenness and of migration."""
    n_steps, n_gpus = s.gpu_load.shape
    even = 0.0
    for step in range(n_steps):
        most = squares = 0.0
        for gpu in range(n_gpus):
            load = s.gpu_load[step, gpu]
            most = max(most, load)
            squares += load * load
        s.peaks[step] = most
        even += squares / n_gpus
    value = _summed_up(s.peaks, s.weights[1]) + SMOOTH * even / n_steps
    if s.weights[0] > 0:
        value += s.weights[0] * _moved(s.expert_of, s.gpu_of, s.held) / s.gpu_of.size
    return value


@njit
def _apply(s, one, two, expert):
    """Make a move; the same call with the old expert, or once more, takes it back."""
    if two == one:
        own = s.expert_of[one]
        _share_expert(s, own, -1.0)
        _share_expert(s, expert, -1.0)
        _leave(s.replicas, s.member, own, one)
        _join(s.replicas, s.member, expert, one)
        s.expert_of[one] = expert
        _share_expert(s, own, 1.0)
        _share_expert(s, expert, 1.0)
        return
    _share(s, one, -1.0)
    _share(s, two, -1.0)
    s.gpu_of[one], s.gpu_of[two] = s.gpu_of[two], s.gpu_of[one]
    _share(s, one, 1.0)
    _share(s, two, 1.0)


@njit
def try_moves_of_load(s, a, b, expert, draw, temperature, value, best, best_expert, best_gpu):
    """As `try_moves`, for loads alone."""
    evaluated = lowered = 0
    for i in range(a.size):
        one, two, own = a[i], b[i], s.expert_of[a[i]]
        if expert[i] >= 0:
            two = one
            if expert[i] == own or s.replicas[own] < 2:
                continue
        elif s.gpu_of[one] == s.gpu_of[two] or own == s.expert_of[two]:
            continue
        _apply(s, one, two, expert[i])
        new = peak_of(s)
        evaluated += 1
        if new <= value or (temperature[i] > 0 and new - value < -temperature[i] * math.log(draw[i])):
            lowered += new < value * (1 - 1e-12)
            value = new
            if new < best:
                best = new
                best_expert[:], best_gpu[:] = s.expert_of, s.gpu_of
        else:
            _apply(s, one, two, own)
    share_all(s)            # sums that were added to and taken from many times begin anew
    return value, best, evaluated, lowered
