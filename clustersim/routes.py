"""Which of the shortest ways each transfer takes: plain functions from pairs of GPUs to links and shares. No traffic, no clock.

A policy is `name(wires, src, dst, *, options) -> Routes` with GPUs src, dst int [transfers]; options are keyword-only. GPUs that
NVLink joins use NVLink under every policy. All raise InputError for a pair without a way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clustersim.pick import did_you_mean
from clustersim.types import Floats, InputError, Ints, Routes
from clustersim.ways import FAR, Bools, Ragged, Ways, concatenated, in_one_block, repeat_rows

__all__ = ["ecmp", "pxn", "shortest", "spray", "table"]

Choose = Callable[[Ways, Ints, Ints], Ragged]
MANY = 1000             # of so many pairs, the routes are made by compiled loops: importing numba takes half a second


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Wires:
    """What a policy may know of a machine."""

    name: str
    gpus_per_node: int
    rail_of: Ints               # [gpus]
    latency: Floats             # [links] seconds
    nvlink: Ways                # over NVLink alone
    network: Ways               # over everything that leads out of an NVLink domain

    @property
    def n_gpus(self) -> int:
        return int(self.rail_of.size)

    def relay(self, src: Ints, dst: Ints) -> Ints:
        """The GPU by whose NIC `src` sends to `dst` under PXN: itself, or its neighbour on the rail of `dst`, int [transfers]."""
        there = src // self.gpus_per_node * self.gpus_per_node + dst % self.gpus_per_node
        stay = (self.rail_of[src] == self.rail_of[dst]) | self.nvlink.reaches(src, dst)
        return np.where(stay, src, there)


def shortest(wires: Wires, src: Ints, dst: Ints) -> Routes:
    """The first of the ways with the fewest hops, always the same one for the same switches."""
    if src.size >= MANY:
        return _laid_out(wires, src, dst)
    return _routes(wires, _leg(wires, src, dst, _first))


def ecmp(wires: Wires, src: Ints, dst: Ints, *, seed: int = 0) -> Routes:
    """One of the shortest ways, picked evenly by a hash of (src, dst): all bytes of a pair stay together, and pairs collide."""
    return _routes(wires, _leg(wires, src, dst, _hashed(seed)))


def spray(wires: Wires, src: Ints, dst: Ints) -> Routes:
    """All shortest ways evenly: the weight of a link is the share of the ways that use it."""
    return _routes(wires, _leg(wires, src, dst, Ways.share))


def pxn(wires: Wires, src: Ints, dst: Ints, *, then: str = "shortest", seed: int = 0) -> Routes:
    """By NVLink to the GPU of the own node that is on the rail of `dst`, and from there by its NIC; as NCCL's PXN.

    Args:
        then: shortest, ecmp or spray, from that GPU on. The hash of ecmp sees the relaying GPU, whose connection it is.
    """
    choices: dict[str, Choose] = {"shortest": _first, "ecmp": _hashed(seed), "spray": Ways.share}
    if then not in choices:
        raise InputError(f"topology.routing.then={then}: must be {', '.join(choices)}{did_you_mean(then, choices)}")
    relay = wires.relay(src, dst)
    moved = relay != src
    hop = _leg(wires, src[moved], relay[moved], _first)
    length = np.zeros(src.size, np.int64)
    length[moved] = hop.length
    first = Ragged(length=length, links=hop.links, shares=hop.shares)
    return _routes(wires, concatenated([first, _leg(wires, relay, dst, choices[then])]))


def mixed(
    wires: Wires, src: Ints, dst: Ints, by_nic: Bools, policy: Callable[[Wires, Ints, Ints], Routes]
) -> Routes:
    """Those `by_nic` bool [transfers] out of one NIC and into the other even inside a node; the others as `policy` says."""
    lost = np.flatnonzero(by_nic & ~wires.network.reaches(src, dst))
    if lost.size:
        raise InputError(f"topology {wires.name}: GPU {dst[lost[0]]} cannot be reached from GPU {src[lost[0]]} by NIC")
    out = _first(wires.network, src[by_nic], dst[by_nic])
    rest = policy(wires, src[~by_nic], dst[~by_nic])
    inside = Ragged(length=np.diff(rest.start), links=rest.links, shares=rest.weights)
    return _routes(wires, _sorted_out(by_nic, out, inside))


def spread_out(routes: Routes, at: Ints, n: int) -> Routes:
    """`n` routes, of which those `at` these places are given and the others have no link."""
    length, latency = np.zeros(n, np.int64), np.zeros(n)
    length[at], latency[at] = np.diff(routes.start), routes.latency
    start = np.concatenate(([0], np.cumsum(length)))
    return Routes(start=start, links=routes.links, weights=routes.weights, latency=latency)


def picked(routes: Routes, which: Ints) -> Routes:
    """Routes by number, in that order."""
    begin, length = routes.start[which], routes.start[which + 1] - routes.start[which]
    start = np.concatenate(([0], np.cumsum(length)))
    entries = np.arange(start[-1]) + np.repeat(begin - start[:-1], length)
    return Routes(start=start, links=routes.links[entries], weights=routes.weights[entries], latency=routes.latency[which])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Table:
    """Routes written out for some pairs."""

    key: Ints                   # [pairs] src * n_gpus + dst, sorted
    ways: Ragged                # [pairs]

    def holds(self, src: Ints, dst: Ints, n_gpus: int) -> Bools:
        """Whether a pair is written, bool in the broadcast shape of `src` and `dst`."""
        held: Bools = np.isin(src * n_gpus + dst, self.key)
        return held


def table(wires: Wires, src: Ints, dst: Ints, *, routes: Table, otherwise: str = "shortest", seed: int = 0) -> Routes:
    """The route that is written for a pair, and the policy `otherwise` (shortest, ecmp, spray or pxn) for all others."""
    rest: dict[str, Callable[[Ints, Ints], Routes]] = {
        "shortest": lambda a, b: shortest(wires, a, b), "ecmp": lambda a, b: ecmp(wires, a, b, seed=seed),
        "spray": lambda a, b: spray(wires, a, b), "pxn": lambda a, b: pxn(wires, a, b, seed=seed),
    }  # fmt: skip
    if otherwise not in rest:
        raise InputError(f"topology.routing.otherwise={otherwise}: must be {', '.join(rest)}{did_you_mean(otherwise, rest)}")
    written = routes.holds(src, dst, wires.n_gpus)
    length, entries = repeat_rows(routes.ways.length, np.searchsorted(routes.key, src[written] * wires.n_gpus + dst[written]))
    own = Ragged(length=length, links=routes.ways.links[entries], shares=routes.ways.shares[entries])
    found = rest[otherwise](src[~written], dst[~written])
    return _routes(wires, _sorted_out(written, own, Ragged(length=np.diff(found.start), links=found.links, shares=found.weights)))


def unreached(wires: Wires, *, relayed: bool, written: Table | None = None) -> tuple[int, int] | None:
    """The first pair (source, destination) of GPUs without a way; None when all reach all.

    Args:
        relayed: with PXN.
        written: pairs that have a route whatever the wires say.
    """
    n = wires.n_gpus
    dst = np.arange(n)[None, :]
    for begin in range(0, n, 256):          # 256 sources at a time: what is held stays small
        src = np.arange(begin, min(n, begin + 256))[:, None]
        joined = _joined(wires, src, dst, relayed) | (src == dst)
        if written is not None:
            joined |= written.holds(src, dst, n)
        if not joined.all():
            a, b = np.argwhere(~joined)[0]
            return begin + int(a), int(b)
    return None


def _joined(wires: Wires, src: Ints, dst: Ints, relayed: bool) -> Bools:
    joined: Bools = wires.nvlink.reaches(src, dst)
    if relayed:
        relay = wires.relay(*np.broadcast_arrays(src, dst))
        joined |= wires.network.reaches(relay, dst) & ((relay == src) | wires.nvlink.reaches(src, relay))
    else:
        joined |= wires.network.reaches(src, dst)
    return joined


def complaint(wires: Wires, src: int, dst: int) -> InputError:
    """What to say of a pair without a way."""
    why = "no NIC, or no NVLink"
    if _joined(wires, np.array([src]), np.array([dst]), relayed=True).all():
        why = "only by relaying over NVLink, which routing.name=pxn does"
    return InputError(f"topology {wires.name}: GPU {dst} cannot be reached from GPU {src}: {why}")


def _leg(wires: Wires, src: Ints, dst: Ints, choose: Choose) -> Ragged:
    """The ways of each pair without a relay: over NVLink where it joins them, else over the network."""
    inside = wires.nvlink.reaches(src, dst)
    lost = np.flatnonzero(~inside & ~wires.network.reaches(src, dst))
    if lost.size:
        raise complaint(wires, int(src[lost[0]]), int(dst[lost[0]]))
    return _sorted_out(
        inside, *(choose(ways, src[mine], dst[mine]) for ways, mine in ((wires.nvlink, inside), (wires.network, ~inside)))
    )


def _sorted_out(chosen: Bools, yes: Ragged, no: Ragged) -> Ragged:
    """Rows of `yes` where `chosen`, of `no` elsewhere, each in order."""
    if not yes.length.size or not no.length.size:
        return yes if yes.length.size else no
    length = np.empty(chosen.size, np.int64)
    length[chosen], length[~chosen] = yes.length, no.length
    here = np.repeat(chosen, length)
    links, shares = np.empty(here.size, np.int64), np.empty(here.size)
    links[here], shares[here] = yes.links, yes.shares
    here = ~here
    links[here], shares[here] = no.links, no.shares
    return Ragged(length=length, links=links, shares=shares)


def _routes(wires: Wires, ways: Ragged) -> Routes:
    start = np.concatenate(([0], np.cumsum(ways.length))).astype(np.int64)
    seconds = wires.latency[ways.links] * ways.shares
    latency = np.add.reduceat(seconds, start[:-1]) if ways.length.size else np.zeros(0)
    return Routes(start=start, links=ways.links, weights=ways.shares, latency=latency)


def _laid_out(wires: Wires, src: Ints, dst: Ints) -> Routes:
    """`shortest` of many pairs: a way for each kind of pair, then all rows in one go."""
    from clustersim import laying

    near, far = wires.nvlink, wires.network
    src, dst = np.ascontiguousarray(src, np.int64), np.ascontiguousarray(dst, np.int64)
    n_kinds = near.hops.size + far.hops.size
    place, first, kind = np.full(n_kinds, -1), np.empty(min(n_kinds, src.size), np.int64), np.empty(src.size, np.int32)
    found = laying.sort_by_kind(
        src, dst, (near.start_of, near.end_of, near.hops, FAR), (far.start_of, far.end_of, far.hops, FAR), place, first, kind
    )
    if found < 0:
        raise complaint(wires, int(src[-1 - found]), int(dst[-1 - found]))
    first = first[:found]
    inside = near.reaches(src[first], dst[first])
    few, of_source = near.up.shape[1], near.up.shape[1] + far.up.shape[1]
    way = _sorted_out(
        inside,
        near.first_way(src[first[inside]], dst[first[inside]], up=0, down=of_source),
        far.first_way(src[first[~inside]], dst[first[~inside]], up=few, down=of_source + few),
    )
    n = int(laying.total(kind, way.length))
    (start, links), (weights, latency) = in_one_block([src.size + 1, n], [n, src.size])
    begin = np.concatenate(([0], np.cumsum(way.length)))
    ports = np.concatenate((near.up, far.up, near.down, far.down), axis=1)
    laying.lay_out(src, dst, kind, begin, way.links, ports, of_source, wires.latency, start, links, weights, latency)
    return Routes(start=start, links=links, weights=weights, latency=latency)


def _first(ways: Ways, src: Ints, dst: Ints) -> Ragged:
    return ways.take(src, dst, np.zeros(src.size, np.int64))


def _hashed(seed: int) -> Choose:
    def choose(ways: Ways, src: Ints, dst: Ints) -> Ragged:
        number = ways.number(src, dst)
        return ways.take(src, dst, (_hash(src, dst, seed) % number.astype(np.uint64)).astype(np.int64))

    return choose


def _hash(src: Ints, dst: Ints, seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """64 well-mixed bits of each pair: the finaliser of MurmurHash3 over a sum of odd multiples."""
    mixed = src.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + dst.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed += np.uint64((seed * 0x165667B19E3779F9 + 0x27D4EB2F165667C5) % 2**64)
    for shift, factor in ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53), (33, 1)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed
