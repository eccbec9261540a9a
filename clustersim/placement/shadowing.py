"""FasterMoE's shadowing: copy the busiest experts to every GPU while that is cheaper than moving their tokens. No links."""

from __future__ import annotations

import numpy as np

from clustersim.placement.past import Past, Room, need_slots
from clustersim.types import Floats, InputError, Ints, Placement


def shadow(
    rng: np.random.Generator, past: Past, room: Room,
    *, hidden: int, ffn_ratio: float = 4.0, bandwidth: float = 6.25e9, flops: float = 11.5e12, value_bytes: float = 4.0,
) -> Placement:
    """Contiguous, with the shadowed experts (`shadowed`) on every GPU besides; at most as many as every GPU has spare slots.

    Slots that are left hold the first experts again. FasterMoE copies the weights anew in every iteration, which its rule
    prices; here they stay. Goes with the replica rule `nearest`: a shadowed expert is computed where the token is.

    Args:
        hidden, ffn_ratio, bandwidth, flops, value_bytes: of FasterMoE's cost model, see `shadowed`. bytes/s, FLOP/s.

    Raises:
        InputError: fewer slots than experts, or a number that is not above 0.
    """
    need_slots(past, room)
    base = -(-past.n_experts // room.n_gpus)
    spare = int(room.slots_of.min()) - base
    if spare < 0:
        raise InputError(f"placement.slots: shadow starts from contiguous and needs {base} slots on every GPU, and one has fewer")
    chosen, _ = shadowed(
        past.load.mean(axis=0), hidden=hidden, ffn_ratio=ffn_ratio, bandwidth=bandwidth, flops=flops, value_bytes=value_bytes
    )
    everywhere = chosen[:spare]
    gpu_of, expert_of = room.gpu_of, np.full(room.n_slots, -1, np.int64)
    at = np.arange(room.n_slots) - np.repeat(np.cumsum(room.slots_of) - room.slots_of, room.slots_of)
    home = gpu_of * base + at
    own = (at < base) & (home < past.n_experts)
    expert_of[own] = home[own]
    for gpu in range(room.n_gpus):
        free = np.flatnonzero((gpu_of == gpu) & (expert_of < 0))
        away = [e for e in everywhere if e // base != gpu][: free.size]
        expert_of[free[: len(away)]] = away
    following = 0
    for slot in np.flatnonzero(expert_of < 0):              # the first experts again, no GPU twice where that can be
        held = set(expert_of[gpu_of == gpu_of[slot]].tolist())
        turn = [(following + i) % past.n_experts for i in range(past.n_experts)]
        expert_of[slot] = next((e for e in turn if e not in held), turn[0])
        following = int(expert_of[slot]) + 1
    return Placement(gpu_of=gpu_of, expert_of=expert_of)


def shadowed(
    load: Floats, *, hidden: int, ffn_ratio: float, bandwidth: float, flops: float, value_bytes: float
) -> tuple[Ints, Floats]:
    """The experts worth copying to every worker, busiest first, and the modelled seconds before and after each trial.

    The busiest expert left holds everyone up: 3 x its GEMMs + 4 x its tokens on the wire. Each copy costs 2 x ffn_ratio x
    hidden² values more. Experts are shadowed while that pays, and never the last one.

    Source: FasterMoE (PPoPP 2022), github laekov/fastmoe, fmoe/fastermoe/shadow_policy.py.

    Args:
        load: float [experts], tokens of one iteration.
        hidden: values of a token.
        ffn_ratio: intermediate size / hidden.
        bandwidth: bytes/s.
        flops: FLOP/s.
        value_bytes: of one value.

    Raises:
        InputError: a number that is not above 0.
    """
    given = {"hidden": hidden, "ffn_ratio": ffn_ratio, "bandwidth": bandwidth, "flops": flops, "value_bytes": value_bytes}
    for key, value in given.items():
        if not value > 0:
            raise InputError(f"placement.{key}={value}: must be a number above 0")
    token_s = 3 * 4 * ffn_ratio * hidden**2 / flops + 4 * hidden * value_bytes / bandwidth
    copy_s = 2 * ffn_ratio * hidden**2 * value_bytes / bandwidth
    order = np.argsort(-load, kind="stable")
    seconds = [token_s * float(load[order[0]])]
    n = 0
    while n < load.size - 1:
        seconds.append((n + 1) * copy_s + token_s * float(load[order[n + 1]]))
        if seconds[-1] >= seconds[-2]:
            break
        n += 1
    return order[:n], np.array(seconds)
