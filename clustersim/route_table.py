"""Routes that the user writes out: the list `routing.routes` of a machine's YAML, read into a table. Chooses nothing itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import networkx as nx
import numpy as np

from clustersim.pick import did_you_mean
from clustersim.routes import Table
from clustersim.types import InputError
from clustersim.ways import Ragged
from clustersim.wiring import Node, gpu_in, gpu_out

KEYS = ("from", "to", "via", "links")


def read_table(graph: nx.DiGraph, n_gpus: int, per_node: int, lines: Any) -> Table:
    """The routes that `lines` write out over a numbered graph.

    A line is `{from: gpu 0, to: gpu 9, via: [leaf 0, spine 1]}`: by the fewest hops to each switch named, or GPU that relays,
    in turn, and on to the destination. `from` and `to` may be nodes, which means every pair of their GPUs. Between GPUs `links`
    may stand in place of `via`: all links of the way by name, in order. A line for two GPUs goes before one for their nodes.

    Raises:
        InputError: a line that cannot be read, names what is not there, or leads nowhere; a pair given twice.
    """
    if not isinstance(lines, Sequence) or isinstance(lines, str) or not lines:
        raise InputError(f"topology.routing.routes={lines}: must be a list of lines {{from: gpu 0, to: gpu 9, via: [...]}}")
    steps = _steps(graph)
    links_of: dict[str, tuple[Node, Node]] = {data["name"]: (a, b) for a, b, data in graph.edges(data=True)}
    found: dict[bool, dict[int, list[int]]] = {True: {}, False: {}}         # by whether the line is of single GPUs
    for line in lines:
        key = f"topology.routing.routes: {_shown(line)}"
        _check(key, line)
        sources, ends = (_gpus(key, line[end], n_gpus, per_node) for end in ("from", "to"))
        single = len(sources) == len(ends) == 1 and "node" not in f"{line['from']}{line['to']}"
        if "links" in line and not single:
            raise InputError(f"{key}: links are of one GPU each; write via, or a line for two GPUs")
        for src in sources:
            for dst in ends:
                if src == dst:
                    if single:
                        raise InputError(f"{key}: leads from a GPU to itself")
                    continue
                if src * n_gpus + dst in found[single]:
                    raise InputError(f"{key}: GPU {src} to GPU {dst} is written twice")
                if "links" in line:
                    way = _chain(key, [str(name) for name in line["links"]], links_of, src, dst)
                else:
                    way = _legs(key, graph, line["via"], steps, src, dst, n_gpus)
                found[single][src * n_gpus + dst] = _numbers(key, graph, way)
    every = found[False] | found[True]
    keys = sorted(every)
    links = np.array([link for key in keys for link in every[key]], np.int64)
    length = np.array([len(every[key]) for key in keys], np.int64)
    return Table(key=np.array(keys, np.int64), ways=Ragged(length=length, links=links, shares=np.ones(links.size)))


def _check(key: str, line: Any) -> None:
    if not isinstance(line, Mapping):
        raise InputError(f"{key}: must be {{from: ..., to: ..., via: [...]}}")
    for given in line:
        if given not in KEYS:
            raise InputError(f"{key}: there is no key {given}{did_you_mean(str(given), KEYS)} (known: {', '.join(KEYS)})")
    if missing := [end for end in ("from", "to") if end not in line]:
        raise InputError(f"{key}: does not say {missing[0]}")
    if ("via" in line) == ("links" in line):
        raise InputError(f"{key}: needs either via or links")
    way = line.get("via", line.get("links"))
    if not isinstance(way, Sequence) or isinstance(way, str) or not way:
        raise InputError(f"{key}: via and links are lists, such as [leaf 0, spine 1]")


def _gpus(key: str, end: Any, n_gpus: int, per_node: int) -> list[int]:
    match = re.fullmatch(r"(gpu|node) (\d+)", str(end).strip())
    if match is None:
        raise InputError(f"{key}: {end} is neither gpu N nor node N")
    number, each = int(match[2]), 1 if match[1] == "gpu" else per_node
    if number * each >= n_gpus:
        raise InputError(f"{key}: there is no {end}; there are {n_gpus // each}, from 0 on")
    return list(range(number * each, (number + 1) * each))


def _steps(graph: nx.DiGraph) -> Any:
    """Nodes from one to another by the fewest hops, None where there is no way; each asked for once."""

    @cache
    def steps(a: Node, b: Node) -> list[Node] | None:
        try:
            found: list[Node] = nx.shortest_path(graph, a, b, weight="hops")
        except nx.NetworkXNoPath:
            return None
        return found

    return steps


def _legs(
    key: str, graph: nx.DiGraph, via: Sequence[Any], steps: Any, src: int, dst: int, n_gpus: int
) -> Iterator[tuple[Node, Node]]:
    """The edges from GPU to GPU by way of what `via` names."""
    here = gpu_out(src)
    for stop in (*(str(name).strip() for name in via), f"gpu {dst}"):
        relay = re.fullmatch(r"gpu (\d+)", stop)
        if relay is None and stop not in graph:
            raise InputError(f"{key}: there is no switch {stop}{did_you_mean(stop, [v for v in graph if isinstance(v, str)])}")
        if relay is not None and int(relay[1]) >= n_gpus:
            raise InputError(f"{key}: there is no {stop}; the GPUs are 0 to {n_gpus - 1}")
        there: Node = gpu_in(int(relay[1])) if relay else stop
        way = steps(here, there)
        if way is None:
            at = here if isinstance(here, str) else f"gpu {here[1]}"
            raise InputError(f"{key}: there is no way from {at} to {stop} on the way from GPU {src} to GPU {dst}")
        yield from pairwise(way)
        here = gpu_out(int(relay[1])) if relay else stop


def _chain(
    key: str, names: Sequence[str], links_of: Mapping[str, tuple[Node, Node]], src: int, dst: int
) -> Iterator[tuple[Node, Node]]:
    """The edges of links that are named one by one; each begins where the one before ends."""
    here = gpu_out(src)
    for name in names:
        if name not in links_of:
            raise InputError(f"{key}: there is no link {name}{did_you_mean(name, links_of)}")
        tail, head = links_of[name]
        if tail != here:
            raise InputError(f"{key}: {name} does not begin where the way has got to ({_place(here)})")
        yield tail, head
        here = head if isinstance(head, str) or head[1] == dst else gpu_out(head[1])        # a GPU on the way relays
    if here != gpu_in(dst):
        raise InputError(f"{key}: the links end at {_place(here)}, not at GPU {dst}")


def _numbers(key: str, graph: nx.DiGraph, way: Iterator[tuple[Node, Node]]) -> list[int]:
    links: list[int] = []
    for a, b in way:
        if graph[a][b]["link"] in links:
            raise InputError(f"{key}: crosses {graph[a][b]['name']} twice")
        links.append(graph[a][b]["link"])
    return links


def _place(node: Node) -> str:
    return node if isinstance(node, str) else f"GPU {node[1]}"


def _shown(line: Any) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in line.items()) + "}" if isinstance(line, Mapping) else str(line)
