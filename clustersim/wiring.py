"""A machine's graph while it is drawn: GPUs, switches, the links that join them. Knows no YAML, no routes and no traffic."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import networkx as nx

from clustersim.types import InputError

Node = tuple[str, int, str] | str       # ("gpu", g, "out" or "in"), or the name of a switch: "leaf 3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One direction of one wire, or of several that share their load."""

    id: int
    kind: str               # "nic_up", "leaf_down", ...: up is away from the GPUs
    name: str               # "nic_up 12": the NIC of GPU 12, towards the network
    capacity: float         # bytes/s
    latency: float          # seconds


def gpu_out(g: int) -> Node:
    """The side of GPU `g` that sends. Nothing enters it: a GPU does not pass on what it receives, unless a route says so."""
    return ("gpu", g, "out")


def gpu_in(g: int) -> Node:
    """The side of GPU `g` that receives."""
    return ("gpu", g, "in")


def empty_graph(n_gpus: int) -> nx.DiGraph:
    """A machine of GPUs and nothing between them."""
    graph = nx.DiGraph()
    graph.add_nodes_from(side(g) for g in range(n_gpus) for side in (gpu_out, gpu_in))
    return graph


def add_link(
    graph: nx.DiGraph, tail: Node, head: Node, kind: str, label: object, capacity: float, latency: float, *, hops: int = 1
) -> None:
    """A link from `tail` to `head` called `kind label`.

    Args:
        capacity, latency: bytes/s and seconds.
        hops: what it counts when ways are compared; more than 1 makes routes avoid it.

    Raises:
        InputError: a capacity that is not positive and finite, or a second link between the two.
    """
    if not 0 < capacity < math.inf:
        raise InputError(f"topology: link {kind} {label} would carry {capacity:g} bytes/s; it must be above 0 and finite")
    if graph.has_edge(tail, head):
        other = graph[tail][head]["name"]
        raise InputError(f"topology: {other} and {kind} {label} join the same two; write one link that carries both")
    drawn = graph.graph["drawn"] = graph.graph.get("drawn", 0) + 1
    graph.add_edge(tail, head, kind=kind, name=f"{kind} {label}", capacity=capacity, latency=latency, hops=hops, drawn=drawn)


def join(graph: nx.DiGraph, low: str, high: str, kind: str, label: object, capacity: float, latency: float) -> None:
    """Links from a switch to one further from the GPUs and back: `kind_up label`, `kind_down label`."""
    add_link(graph, low, high, f"{kind}_up", label, capacity, latency)
    add_link(graph, high, low, f"{kind}_down", label, capacity, latency)


def add_port(graph: nx.DiGraph, g: int, switch: str, kind: str, label: object, capacity: float, latency: float) -> None:
    """Links from GPU `g` to a switch and back, each with half of the latency of a traversal."""
    add_link(graph, gpu_out(g), switch, f"{kind}_up", label, capacity, latency / 2)
    add_link(graph, switch, gpu_in(g), f"{kind}_down", label, capacity, latency / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nics:
    """The NICs of a machine, for a fabric to join. NIC k is NIC k % per_node of node k // per_node."""

    graph: nx.DiGraph           # to be drawn on
    nodes: int
    per_node: int
    shared_by: int              # GPUs that share one; more than 1 puts a switch "nic k" between them and the fabric
    rate: float                 # bytes/s of one, each way
    latency: float              # seconds of one traversal, NIC to NIC
    rails: int                  # NIC i of a node is on rail i % rails; 0: the machine has no rails
    oversubscription: float     # what enters a leaf from below / what leaves it upwards

    @property
    def n(self) -> int:
        return self.nodes * self.per_node

    def plug(self, k: int, switch: str, *, share: float = 1.0, tag: str = "") -> None:
        """Join NIC `k` to a switch; with several ports, `share` of its rate to each, told apart by `tag`."""
        rate, half = self.rate * share, self.latency / 2
        if self.shared_by == 1:
            add_port(self.graph, k, switch, "nic", f"{k}{tag}", rate, self.latency)
            return
        for g in range(k * self.shared_by, (k + 1) * self.shared_by):
            if not self.graph.has_edge(gpu_out(g), f"nic {k}"):
                add_port(self.graph, g, f"nic {k}", "pcie", g, self.rate, 0.0)
        join(self.graph, f"nic {k}", switch, "nic", f"{k}{tag}", rate, half)

    def spread(self, leaves: int, groups: int = 1, option: str = "leaves") -> list[int]:
        """The leaf of every NIC, when they are dealt in order to `groups` of `leaves` leaves each.

        On rails a group takes whole nodes, and deals them to sets of one leaf per rail.

        Raises:
            InputError: counts that do not divide.
        """
        total = groups * leaves
        if not self.rails:
            if self.n % total:
                raise InputError(f"topology.fabric.{option}={leaves}: {self.n} NICs cannot be dealt evenly to {total} switches")
            return [k // (self.n // total) for k in range(self.n)]
        if leaves % self.rails or self.nodes % (total // self.rails):
            raise InputError(
                f"topology.fabric.{option}={leaves}: needs one for each of the {self.rails} rails, or a multiple by which "
                f"{self.nodes} nodes can be dealt evenly to {groups} groups (or nic.rails=false)"
            )
        nodes = self.nodes // (total // self.rails)         # to a set of leaves
        return [node // nodes * self.rails + i % self.rails for node in range(self.nodes) for i in range(self.per_node)]

    def plug_all(self, leaf_of: Iterable[int | str], tier: str = "leaf") -> None:
        """Join every NIC to the switch `tier number` of its number."""
        for k, leaf in enumerate(leaf_of):
            self.plug(k, f"{tier} {leaf}")


def number(graph: nx.DiGraph) -> tuple[Link, ...]:
    """The links, numbered by kind, then as they were drawn; each edge's attribute `link` becomes its number."""
    edges = sorted((data for *_, data in graph.edges(data=True)), key=lambda data: data["drawn"])
    kinds = {kind: i for i, kind in enumerate(dict.fromkeys(data["kind"] for data in edges))}
    links = []
    for i, data in enumerate(sorted(edges, key=lambda data: kinds[data["kind"]])):
        data["link"] = i
        links.append(Link(id=i, kind=data["kind"], name=data["name"], capacity=data["capacity"], latency=data["latency"]))
    return tuple(links)
