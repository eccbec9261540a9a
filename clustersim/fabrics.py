"""What is behind the NICs: plain functions that draw switches and links into a machine's graph. No routes.

A fabric is `name(nics, *, options) -> None`; it joins every NIC with `nics.plug` and its switches with `wiring.join` or
`add_link`. Options are keyword-only; quantities are text with a unit. Bandwidths that are not asked follow from the NICs' rate
and `nic.oversubscription`.
"""

from __future__ import annotations

from itertools import permutations

from clustersim import units
from clustersim.types import InputError
from clustersim.wiring import Nics, add_link, join

__all__ = ["crossbar", "dragonfly", "fat_tree", "leaf_spine", "multi_plane", "rail_only"]


def crossbar(nics: Nics) -> None:
    """One switch that never blocks: only the NICs limit.

    Raises:
        InputError: oversubscription, which it has no place for.
    """
    _no_uplinks("crossbar", nics)
    for k in range(nics.n):
        nics.plug(k, "network 0")


def leaf_spine(nics: Nics, *, spines: int = 1, nodes_per_leaf: int | None = None, latency: str | int = 0) -> None:
    """Leaves, each joined to every spine.

    With rails, one leaf per rail for every `nodes_per_leaf` nodes (all of them when null); without, one leaf for every
    `nodes_per_leaf` nodes (1 when null). A leaf's uplinks carry together what its NICs do / oversubscription.

    Args:
        latency: of each link between leaf and spine.

    Raises:
        InputError: a count that is no whole number from 1 up, or nodes that the leaves do not divide.
    """
    _counts(spines=spines)
    units_ = _units(nics, nodes_per_leaf, None if nics.rails else 1)
    leaf_of = nics.spread(units_ * (nics.rails or 1))
    nics.plug_all(leaf_of)
    _uplinks(nics, "", len(set(leaf_of)), spines, nics.n // len(set(leaf_of)) * nics.rate, _seconds("latency", latency))


def rail_only(nics: Nics) -> None:
    """One leaf per rail, and no spine: GPUs on different rails reach each other by relaying over NVLink (`routing.name: pxn`).

    Source: arXiv 2307.12169.

    Raises:
        InputError: a machine without rails, or oversubscription, which it has no place for.
    """
    _no_uplinks("rail_only", nics)
    if not nics.rails:
        raise InputError("topology.fabric.name=rail_only: needs nic.rails")
    nics.plug_all(nics.spread(nics.rails))


def fat_tree(
    nics: Nics, *, k: int | None = None, pods: int | None = None, leaves: int | None = None, spines: int | None = None,
    cores: int | None = None, core_oversubscription: float = 1.0, latency: str | int = 0,
) -> None:
    """Three tiers: in each pod every leaf is joined to every spine; spine j of every pod to the j-th share of the cores.

    Either `k`, the ports of every switch (k/2 NICs to a leaf, k/2 leaves and k/2 spines to a pod, k²/4 cores; as many pods as
    the NICs fill, at most k), or the numbers of pods, of leaves and spines in each, and of cores in all.

    Args:
        core_oversubscription: what enters a spine from below / what leaves it upwards.
        latency: of each link between switches.

    Raises:
        InputError: counts missing, given twice, or that do not divide.
    """
    given = {"pods": pods, "leaves": leaves, "spines": spines, "cores": cores}
    if k is not None:
        if extra := [name for name, value in given.items() if value is not None]:
            raise InputError(f"topology.fabric.{extra[0]}: k={k} says it already")
        _counts(k=k)
        if k % 2 or nics.n % (k * k // 4) or nics.n > k**3 // 4:
            raise InputError(
                f"topology.fabric.k={k}: must be even, and the {nics.n} NICs must fill 1 to k pods of k²/4 = {k * k // 4} NICs"
            )
        pods, leaves, spines, cores = nics.n // (k * k // 4), k // 2, k // 2, k * k // 4
    elif missing := [name for name, value in given.items() if value is None]:
        raise InputError(f"topology.fabric.{missing[0]}: fat_tree needs it (or k alone)")
    pods, leaves, spines, cores = pods or 0, leaves or 0, spines or 0, cores or 0       # null has been refused
    _counts(pods=pods, leaves=leaves, spines=spines, cores=cores)
    if cores % spines:
        raise InputError(f"topology.fabric.cores={cores}: must be a multiple of the {spines} spines of a pod")
    over = _ratio("core_oversubscription", core_oversubscription)
    leaf_of = nics.spread(leaves, pods)
    seconds = _seconds("latency", latency)
    below = nics.n // (pods * leaves) * nics.rate / nics.oversubscription       # bytes/s of a leaf's uplinks together
    share = cores // spines
    nics.plug_all(f"{leaf // leaves}.{leaf % leaves}" for leaf in leaf_of)
    for pod in range(pods):
        for leaf in range(leaves):
            for spine in range(spines):
                name = f"{pod}.{leaf}.{spine}"
                join(nics.graph, f"leaf {pod}.{leaf}", f"spine {pod}.{spine}", "leaf", name, below / spines, seconds)
        for spine in range(spines):
            for core in range(spine * share, (spine + 1) * share):
                rate = below * leaves / spines / over / share
                join(nics.graph, f"spine {pod}.{spine}", f"core {core}", "spine", f"{pod}.{spine}.{core}", rate, seconds)


def dragonfly(
    nics: Nics, *, groups: int, routers: int, global_links: int, local_bandwidth: str | None = None,
    global_bandwidth: str | None = None, latency: str | int = 0, global_latency: str | int = 0,
) -> None:
    """Groups of routers. Within a group every two are joined; each router has `global_links` links to other groups.

    Any two groups share the same number of global links, dealt to the routers in order; where two routers get several, they
    are one link of their sum. A global link counts as three hops, so that routes are minimal: at most one global link, with a
    local one before and after it. Counted alike, two global links without local ones would be shorter.

    Source: Kim, Dally, Scott, Abts, Technology-Driven, Highly-Scalable Dragonfly Topology, ISCA 2008.

    Args:
        local_bandwidth, global_bandwidth: of one link each way; null: a NIC's.
        latency, global_latency: of one link.

    Raises:
        InputError: counts that do not divide, or oversubscription, which the counts say.
    """
    _no_uplinks("dragonfly", nics)
    _counts(groups=groups, routers=routers, global_links=global_links)
    ends = routers * global_links
    if groups > 1 and ends % (groups - 1):
        raise InputError(
            f"topology.fabric.global_links={global_links}: the {ends} of a group cannot be dealt evenly to {groups - 1} others"
        )
    local, wide = (
        nics.rate if text is None else units.parse_bandwidth(text, f"topology.fabric.{key}")
        for key, text in (("local_bandwidth", local_bandwidth), ("global_bandwidth", global_bandwidth))
    )
    short, far = _seconds("latency", latency), _seconds("global_latency", global_latency)
    names = [f"{router // routers}.{router % routers}" for router in range(groups * routers)]
    router_of = nics.spread(routers, groups, "routers")
    for router, name in enumerate(names):
        nics.graph.add_node(f"router {name}", group=router // routers)
    nics.plug_all((names[router] for router in router_of), "router")
    for group in range(groups):
        for a, b in permutations(names[group * routers : (group + 1) * routers], 2):
            add_link(nics.graph, f"router {a}", f"router {b}", "local", f"{a}>{b}", local, short)
    pairs: dict[tuple[str, str], int] = {}
    for group, other in permutations(range(groups), 2):
        each = ends // (groups - 1)
        for i in range(each):       # the i-th link to the group `there` further is plugged in that order
            ahead, back = (other - group - 1) % groups * each + i, (group - other - 1) % groups * each + i
            at = names[group * routers + ahead // global_links], names[other * routers + back // global_links]
            pairs[at] = pairs.get(at, 0) + 1
    for (a, b), wires in pairs.items():
        add_link(nics.graph, f"router {a}", f"router {b}", "global", f"{a}>{b}", wires * wide, far, hops=3)


def multi_plane(
    nics: Nics, *, planes: int, spines: int, split: bool = False, nodes_per_leaf: int | None = None, latency: str | int = 0
) -> None:
    """Separate networks of leaves and spines that meet in the nodes only.

    As DeepSeek's (arXiv 2505.09343): NIC i of a node is in plane i % planes; GPUs in different planes reach each other by
    relaying over NVLink (`routing.name: pxn`). With `split` every NIC has a port in each plane, with an equal share of its
    rate; then `routing.name` decides which ports carry what (`spray`: all).

    Args:
        spines: of each plane; each leaf of the plane is joined to all of them.
        nodes_per_leaf: nodes whose NICs of a plane share a leaf; null: all. With `split` and rails, one leaf per rail of them.
        latency: of each link between leaf and spine.

    Raises:
        InputError: counts that do not divide.
    """
    _counts(planes=planes, spines=spines)
    seconds = _seconds("latency", latency)
    per_leaf = nics.nodes // _units(nics, nodes_per_leaf, None)
    if not split and nics.per_node % planes:
        raise InputError(f"topology.fabric.planes={planes}: must divide the {nics.per_node} NICs of a node")
    rails = nics.rails if split and nics.rails else 1
    for k in range(nics.n):
        node, i = divmod(k, nics.per_node)
        leaf = node // per_leaf * rails + i % rails
        for plane in range(planes) if split else [i % planes]:
            nics.plug(k, f"leaf {plane}.{leaf}", share=1 / planes if split else 1.0, tag=f".{plane}" if split else "")
    leaves = nics.nodes // per_leaf * rails
    for plane in range(planes):
        _uplinks(nics, f"{plane}.", leaves, spines, nics.n * nics.rate / planes / leaves, seconds)


def _uplinks(nics: Nics, plane: str, leaves: int, spines: int, below: float, latency: float) -> None:
    """Every leaf of a plane joined to every spine of it; `below` is what the NICs of a leaf bring, bytes/s."""
    for leaf in range(leaves):
        for spine in range(spines):
            label = f"{plane}{leaf}" if spines == 1 else f"{plane}{leaf}.{spine}"
            rate = below / nics.oversubscription / spines
            join(nics.graph, f"leaf {plane}{leaf}", f"spine {plane}{spine}", "leaf", label, rate, latency)


def _units(nics: Nics, nodes_per_leaf: int | None, default: int | None) -> int:
    """How many sets of leaves the nodes need; null and no default: one."""
    each = default if nodes_per_leaf is None else nodes_per_leaf
    if each is None:
        return 1
    _counts(nodes_per_leaf=each)
    if nics.nodes % each:
        raise InputError(f"topology.fabric.nodes_per_leaf={each}: must divide the {nics.nodes} nodes")
    return nics.nodes // each


def _no_uplinks(name: str, nics: Nics) -> None:
    if nics.oversubscription != 1:
        raise InputError(
            f"topology.nic.oversubscription={nics.oversubscription:g}: {name} has no uplinks that it could speak of; must be 1"
        )


def _counts(**values: int) -> None:
    for key, value in values.items():
        if value < 1:
            raise InputError(f"topology.fabric.{key}={value}: must be a whole number from 1 up")


def _ratio(key: str, value: float) -> float:
    if not 1 <= value < float("inf"):
        raise InputError(f"topology.fabric.{key}={value}: must be a number from 1 up (1 = non-blocking)")
    return float(value)


def _seconds(key: str, value: str | int) -> float:
    return units.parse_seconds(value, f"topology.fabric.{key}")
