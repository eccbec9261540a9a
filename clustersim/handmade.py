"""A network that the user writes out link by link: the section `graph` of a machine's YAML. Draws; knows no routes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import networkx as nx

from clustersim import units
from clustersim.pick import did_you_mean
from clustersim.types import InputError
from clustersim.wiring import Node, add_link, gpu_in, gpu_out

CLASS = ("bandwidth", "achievable", "latency", "links")
_RANGE = re.compile(r"(.*?)(\d+)\.\.(\d+)")
_LINK = re.compile(r"(.+?)\s+(->|-)\s+(.+)")
COUNTED = ("nvlink", "nic")         # the classes whose bytes results sum up, where they leave a GPU or a NIC


def draw(graph: nx.DiGraph, section: Any, n_gpus: int) -> None:
    """Draw what a `graph` section says on a graph of GPUs.

    `switches` names them all. Every other key is a class of links: `bandwidth`, `achievable` (used instead, or null) and
    `latency` of one link, and `links`, a list of `A - B` (both ways) or `A -> B`. A and B are switches or `gpu N`; one of
    the two may be a range, `gpu 0..3`. Links of class `nic` become `nic_up` (away from the GPUs), `nic_down`, or `nic`
    between switches equally far from the GPUs. GPUs that links of `nvlink` and `nvlink...` join use these alone.

    Raises:
        InputError: a key, name, value or link that cannot be; two links between the same two; a class that counts twice.
    """
    if not isinstance(section, Mapping):
        raise InputError(f"topology.graph={section}: must hold switches and classes of links")
    switches = _switches(section.get("switches"))
    wires = []
    for name, fields in section.items():
        if name != "switches":
            rate, latency, lines = _class(str(name), fields)
            for line in lines:
                wires += [(str(name), rate, latency, a, b) for a, b in _ends(str(name), line, switches, n_gpus)]
    heights = _heights(wires, switches, n_gpus)
    for kind, rate, latency, a, b in wires:
        up, down = heights[a] < heights[b], heights[a] > heights[b]
        both_gpus = not (isinstance(a, str) or isinstance(b, str))
        way = "_up" if up or both_gpus else "_down" if down else ""        # from GPU to GPU: the port that it leaves by
        add_link(graph, a, b, f"{kind}{way}", _label(graph, kind, a, b), rate, latency)
    for kind in COUNTED:
        _counts_once(graph, kind)


def _switches(names: Any) -> dict[str, None]:
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise InputError(f"topology.graph.switches={names}: must be a list of names, such as [nvswitch 0..1, leaf 0]")
    switches: dict[str, None] = {}
    for text in names:
        for name in _expand(str(text)):
            if name in switches:
                raise InputError(f"topology.graph.switches: {name} stands there twice")
            if re.fullmatch(r"gpu( \d+)?|.* (->|-) .*|\s*", name):
                raise InputError(f"topology.graph.switches: {name!r} cannot be the name of a switch")
            switches[name] = None
    return switches


def _class(name: str, fields: Any) -> tuple[float, float, Sequence[Any]]:
    """Rate, latency and links of one class."""
    key = f"topology.graph.{name}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name.endswith(("_up", "_down")) or name == "virtual":
        raise InputError(f"{key}: a class of links is named in small letters, and neither ..._up, ..._down nor virtual")
    if not isinstance(fields, Mapping):
        raise InputError(f"{key}={fields}: needs its fields: {', '.join(CLASS)}")
    for given in fields:
        if given not in CLASS:
            near = did_you_mean(str(given), CLASS)
            raise InputError(f"{key}.{given}: there is no such key{near} (known: {', '.join(CLASS)})")
    if missing := [field for field in CLASS if field not in fields]:
        raise InputError(f"{key}.{missing[0]}: it does not say it")
    said = "bandwidth" if fields["achievable"] is None else "achievable"
    rate = units.parse_bandwidth(fields[said], f"{key}.{said}")
    lines = fields["links"]
    if not isinstance(lines, Sequence) or isinstance(lines, str) or not lines:
        raise InputError(f"{key}.links={lines}: must be a list of links, such as [gpu 0..3 - leaf 0, leaf 0 -> leaf 1]")
    return rate, units.parse_seconds(fields["latency"], f"{key}.latency"), lines


def _ends(kind: str, line: Any, switches: Mapping[str, None], n_gpus: int) -> Iterator[tuple[Node, Node]]:
    """Tail and head of every link that one line means."""
    key = f"topology.graph.{kind}.links: {line}"
    match = _LINK.fullmatch(str(line).strip())
    if match is None:
        raise InputError(f"{key}: is no link; write A - B (both ways) or A -> B")
    left, right = (list(_expand(end)) for end in (match[1], match[3]))
    if len(left) > 1 and len(right) > 1:
        raise InputError(f"{key}: only one end may be a range")
    for a in left:
        for b in right:
            if a == b:
                raise InputError(f"{key}: joins {a} to itself")
            yield _node(a, gpu_out, key, switches, n_gpus), _node(b, gpu_in, key, switches, n_gpus)
            if match[2] == "-":
                yield _node(b, gpu_out, key, switches, n_gpus), _node(a, gpu_in, key, switches, n_gpus)


def _node(name: str, side: Any, key: str, switches: Mapping[str, None], n_gpus: int) -> Node:
    if match := re.fullmatch(r"gpu (\d+)", name):
        if int(match[1]) >= n_gpus:
            raise InputError(f"{key}: there is no {name}; the GPUs are 0 to {n_gpus - 1} (nodes x gpus_per_node)")
        node: Node = side(int(match[1]))
        return node
    if name not in switches:
        raise InputError(f"{key}: {name} is no switch of graph.switches{did_you_mean(name, switches)}")
    return name


def _expand(text: str) -> Iterator[str]:
    """`leaf 0..2` as its three names; other text as it is."""
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        yield text.strip()
        return
    first, last = int(match[2]), int(match[3])
    if not first < last < first + 100_000:
        raise InputError(f"topology.graph: {text}: a range goes from a smaller to a larger number")
    yield from (f"{match[1]}{i}" for i in range(first, last + 1))


def _heights(wires: Sequence[Any], switches: Mapping[str, None], n_gpus: int) -> dict[Node, int]:
    """Links from the nearest GPU to each switch, 0 for the GPUs; either direction of a link will do."""
    wide = nx.Graph((a, b) for *_, a, b in wires)
    ends = [side(g) for g in range(n_gpus) for side in (gpu_out, gpu_in)]
    heights: dict[Node, int] = dict.fromkeys(ends, 0)
    heights |= nx.multi_source_dijkstra_path_length(wide, {end for end in ends if end in wide}) if wide.size() else {}
    if lost := [name for name in switches if name not in heights]:
        raise InputError(f"topology.graph.switches: nothing joins {lost[0]} to a GPU")
    return heights


def _label(graph: nx.DiGraph, kind: str, a: Node, b: Node) -> str:
    """`3` for a GPU's first link of its kind, else `leaf 0>leaf 1`."""
    for gpu, sure in ((a, b), (b, a)):
        if not isinstance(gpu, str) and isinstance(sure, str):
            beside = graph.out_edges(gpu, data="kind") if gpu is a else graph.in_edges(gpu, data="kind")
            if not any(other in (f"{kind}_up", f"{kind}_down") for *_, other in beside):
                return str(gpu[1])
    return ">".join(end if isinstance(end, str) else f"gpu {end[1]}" for end in (a, b))


def _counts_once(graph: nx.DiGraph, kind: str) -> None:
    """Bytes are summed over `nic_up`: no way may lead over two of them."""
    for _, b, data in graph.edges(data=True):
        if data["kind"] == f"{kind}_up" and any(following == f"{kind}_up" for *_, following in graph.out_edges(b, data="kind")):
            raise InputError(
                f"topology.graph.{kind}: {data['name']} leads to another {kind}_up, and results would count its bytes twice; "
                "give links further up another name"
            )
