"""GPUs, links and routes: a machine's YAML, through a networkx graph, to arrays. No clock, no traffic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from clustersim import units
from clustersim.gpuspec import GpuSpec
from clustersim.pick import did_you_mean
from clustersim.places import data_folder
from clustersim.types import Floats, InputError, Ints, Routes

FIELDS: dict[str, tuple[str, ...]] = {      # what a machine's YAML may say; `sources` is for its readers
    "gpu": ("name", "bf16", "fp8", "memory", "memory_bandwidth"),
    "nvlink": ("bandwidth", "achievable", "latency"),
    "nic": ("per_gpu", "bandwidth", "achievable", "latency", "oversubscription", "rails"),
}
TOP = ("nodes", "gpus_per_node", *FIELDS, "sources")
Switch = tuple[str, int]        # kind, number
PHYSICAL = ("nvlink_up", "nvlink_down", "nic_up", "nic_down", "leaf_up", "leaf_down")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One direction of one wire, or of several that share their load."""

    id: int
    kind: str               # one of PHYSICAL
    name: str               # "nic_up 12": the NIC of GPU 12, towards the network
    capacity: float         # bytes/s
    latency: float          # seconds


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Cluster:
    """A machine. GPU g is GPU `local_of[g]` of node `node_of[g]`; a node is one NVLink domain.

    A GPU has ports, the best first; behind each is a switch. Between switches the way with the fewest hops is taken.
    """

    name: str
    n_nodes: int
    gpus_per_node: int
    gpu: GpuSpec
    links: tuple[Link, ...]
    graph: nx.DiGraph               # GPUs (in, out) and switches; an edge's attribute `link` is its id
    port_switch: Ints               # [gpus, ports] switch behind the port
    port_up: Ints                   # [gpus, ports] link from GPU to switch
    port_down: Ints                 # [gpus, ports] link from switch to GPU
    way_hops: Ints                  # [switches, switches] links between them, -1 where there is no way
    way_start: Ints                 # [switches, switches] where they begin in `way_links`
    way_links: Ints

    @property
    def n_gpus(self) -> int:
        return self.n_nodes * self.gpus_per_node

    @property
    def node_of(self) -> Ints:
        return np.arange(self.n_gpus) // self.gpus_per_node

    @property
    def local_of(self) -> Ints:
        return np.arange(self.n_gpus) % self.gpus_per_node

    @property
    def capacity(self) -> Floats:
        """Bytes/s [links]."""
        return np.array([link.capacity for link in self.links])

    @property
    def latency(self) -> Floats:
        """Seconds [links]."""
        return np.array([link.latency for link in self.links])

    def routes(self, src: Ints, dst: Ints) -> Routes:
        """The links from `src` to `dst`, GPUs [transfers] each: fewest hops, of equals the better port. No GPU relays.

        Raises:
            InputError: there is no way from a source to its destination.
        """
        n = src.size
        fewest = np.full(n, np.iinfo(np.int64).max)
        up, down, way, hops = (np.zeros(n, np.int64) for _ in range(4))
        for p in range(self.port_switch.shape[1]):
            for q in range(self.port_switch.shape[1]):
                x, y = self.port_switch[src, p], self.port_switch[dst, q]
                better = (self.way_hops[x, y] >= 0) & (self.way_hops[x, y] < fewest)
                fewest = np.where(better, self.way_hops[x, y], fewest)
                up, down = np.where(better, self.port_up[src, p], up), np.where(better, self.port_down[dst, q], down)
                way, hops = np.where(better, self.way_start[x, y], way), np.where(better, self.way_hops[x, y], hops)
        if (lost := np.flatnonzero(fewest == np.iinfo(np.int64).max)).size:
            i = lost[0]
            raise InputError(f"topology {self.name}: GPU {dst[i]} cannot be reached from GPU {src[i]}: no NIC, or no NVLink")
        start = np.concatenate(([0], np.cumsum(hops + 2))).astype(np.int64)
        links = np.empty(int(start[-1]), np.int64)
        links[start[:-1]], links[start[1:] - 1] = up, down
        inner = np.arange(int(hops.sum())) - np.repeat(np.cumsum(hops) - hops, hops)        # 0.. in each way
        links[np.repeat(start[:-1] + 1, hops) + inner] = self.way_links[np.repeat(way, hops) + inner]
        latency = np.add.reduceat(self.latency[links], start[:-1]) if n else np.zeros(0)
        return Routes(start=start, links=links, weights=np.ones(links.size), latency=latency)


def load_cluster(name: str | Path, **overrides: Any) -> Cluster:
    """A machine of `topologies/`, or of a YAML file; keyword arguments override its fields (`nic={"bandwidth": "200Gb/s"}`).

    Raises:
        InputError: no such machine, a key or value that cannot be, or GPUs that cannot reach each other.
    """
    folder = data_folder("topologies")
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        known = [p.stem for p in folder.glob("*.yaml")]
        near = did_you_mean(str(name), known)
        raise InputError(f"topology={name}: there is no such file{near} (known: {', '.join(sorted(known))})")
    import yaml

    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"topology={name}: not a YAML file: {str(error).splitlines()[0]}") from error
    if not isinstance(fields, dict):
        raise InputError(f"topology={name}: {path} holds no fields")
    for key, value in overrides.items():
        fields[key] = {**fields[key], **value} if isinstance(value, Mapping) and isinstance(fields.get(key), dict) else value
    return build_cluster(path.stem, fields)


def build_cluster(name: str, fields: Mapping[str, Any]) -> Cluster:
    """A machine from the fields of its YAML (see `topologies/`): ports of every GPU, NVSwitches, and the network behind the NICs.

    A non-blocking network (`nic.oversubscription` 1) is one switch. An oversubscribed one is leaves and a spine:
    one leaf per rail (`nic.rails`), else one per node, and all uplinks of a leaf share their load.
    """
    _check_keys(name, fields)
    n_nodes, per_node = (_whole(f"topology.{key}", fields[key]) for key in ("nodes", "gpus_per_node"))
    gpus = range(n_nodes * per_node)
    graph = nx.DiGraph()
    graph.add_nodes_from(("gpu", g, way) for g in gpus for way in ("out", "in"))
    nvlink, nic = fields["nvlink"], fields["nic"]
    ports: list[list[Switch]] = []
    if (rate := _rate("nvlink", nvlink)) > 0:
        ports.append([("nvswitch", g // per_node) for g in gpus])
        _add_ports(graph, "nvlink", ports[-1], rate, units.parse_seconds(nvlink["latency"], "topology.nvlink.latency"))
    if (rate := _rate("nic", nic) * _whole("topology.nic.per_gpu", nic["per_gpu"])) > 0:
        over = nic["oversubscription"]
        if isinstance(over, bool) or not isinstance(over, int | float) or not 1 <= over < float("inf"):
            raise InputError(f"topology.nic.oversubscription={over}: must be a number from 1 up (1 = non-blocking)")
        rails = nic["rails"]
        if not isinstance(rails, bool):
            raise InputError(f"topology.nic.rails={rails}: must be true (leaf i has NIC i of all nodes) or false (leaf per node)")
        leaf: list[Switch] = [("leaf", g % per_node if rails else g // per_node) if over > 1 else ("network", 0) for g in gpus]
        ports.append(leaf)
        _add_ports(graph, "nic", leaf, rate, units.parse_seconds(nic["latency"], "topology.nic.latency"))
        for switch in sorted(set(leaf)) if over > 1 else ():
            uplinks = leaf.count(switch) * rate / over
            graph.add_edge(switch, ("spine", 0), kind="leaf_up", name=f"leaf_up {switch[1]}", capacity=uplinks, latency=0.0)
            graph.add_edge(("spine", 0), switch, kind="leaf_down", name=f"leaf_down {switch[1]}", capacity=uplinks, latency=0.0)
    return _freeze(name, n_nodes, per_node, _gpu(fields["gpu"]), graph, ports)


def _add_ports(graph: nx.DiGraph, kind: str, switches: list[Switch], rate: float, latency: float) -> None:
    """A link to the switch and one back for every GPU; each carries half of the latency of a traversal."""
    for g, switch in enumerate(switches):
        half = {"capacity": rate, "latency": latency / 2}
        graph.add_edge(("gpu", g, "out"), switch, kind=f"{kind}_up", name=f"{kind}_up {g}", **half)
        graph.add_edge(switch, ("gpu", g, "in"), kind=f"{kind}_down", name=f"{kind}_down {g}", **half)


def _freeze(name: str, n_nodes: int, per_node: int, gpu: GpuSpec, graph: nx.DiGraph, ports: list[list[Switch]]) -> Cluster:
    """Number the links by kind, then GPU; find the ways between switches; check that every GPU reaches every other."""
    edges = sorted(graph.edges(data=True), key=lambda e: PHYSICAL.index(e[2]["kind"]))      # stable: GPUs stay in order
    links: list[Link] = []
    for tail, head, data in edges:
        data["link"] = len(links)
        links.append(Link(id=len(links), **{key: data[key] for key in ("kind", "name", "capacity", "latency")}))
        graph[tail][head]["link"] = data["link"]
    switches = {v: i for i, v in enumerate(v for v in graph if v[0] != "gpu")}
    inner = graph.subgraph(switches)
    hops = np.full((len(switches), len(switches)), -1, np.int64)
    start = np.zeros_like(hops)
    ways: list[int] = []
    for tail, paths in nx.all_pairs_shortest_path(inner):
        for head, path in paths.items():
            hops[switches[tail], switches[head]] = len(path) - 1
            start[switches[tail], switches[head]] = len(ways)
            ways += [graph[a][b]["link"] for a, b in pairwise(path)]
    n_gpus = n_nodes * per_node
    if not ports and n_gpus > 1:
        raise InputError(f"topology {name}: GPU 1 cannot be reached from GPU 0: nvlink.bandwidth and nic.bandwidth are null")
    switch_of = np.array([[switches[v] for v in port] for port in ports], np.int64).T
    up = np.array([[graph[("gpu", g, "out")][v]["link"] for g, v in enumerate(port)] for port in ports], np.int64).T
    down = np.array([[graph[v][("gpu", g, "in")]["link"] for g, v in enumerate(port)] for port in ports], np.int64).T
    cluster = Cluster(
        name=name, n_nodes=n_nodes, gpus_per_node=per_node, gpu=gpu, links=tuple(links), graph=graph, port_switch=switch_of,
        port_up=up, port_down=down, way_hops=hops, way_start=start, way_links=np.array(ways, np.int64),
    )  # fmt: skip
    _, one_of_each = np.unique(switch_of, axis=0, return_index=True)        # GPUs on the same switches reach the same GPUs
    pairs = np.array([(a, b) for a in one_of_each for b in one_of_each if a != b], np.int64).reshape(-1, 2)
    cluster.routes(pairs[:, 0], pairs[:, 1])
    return cluster


def _check_keys(name: str, fields: Mapping[str, Any]) -> None:
    for key in fields:
        if key not in TOP:
            raise InputError(f"topology.{key}: {name} has no such key{did_you_mean(str(key), TOP)} (known: {', '.join(TOP)})")
    for section, known in FIELDS.items():
        given = fields.get(section)
        if not isinstance(given, Mapping):
            raise InputError(f"topology.{section}={given}: {name} needs its fields: {', '.join(known)}")
        for key in given:
            if key not in known:
                near = did_you_mean(str(key), known)
                raise InputError(f"topology.{section}.{key}: there is no such key{near} (known: {', '.join(known)})")
        if missing := [key for key in known if key not in given]:
            raise InputError(f"topology.{section}.{missing[0]}: {name} does not say it")
    if missing := [key for key in ("nodes", "gpus_per_node") if key not in fields]:
        raise InputError(f"topology.{missing[0]}: {name} does not say it")


def _whole(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{key}={value}: must be a whole number from 1 up")
    return value


def _rate(section: str, fields: Mapping[str, Any]) -> float:
    """Bytes/s of one port: the achievable rate where one is given; 0 when the machine has no such port (null)."""
    key = "bandwidth" if fields["achievable"] is None else "achievable"
    if fields[key] is None:
        return 0.0
    rate = units.parse_bandwidth(fields[key], f"topology.{section}.{key}")
    if not rate > 0:
        raise InputError(f"topology.{section}.{key}={fields[key]}: must be above 0 (null: there is no such port)")
    return rate


def _gpu(fields: Mapping[str, Any]) -> GpuSpec:
    return GpuSpec(
        name=str(fields["name"]),
        bf16_flops=units.parse_flops(fields["bf16"], "topology.gpu.bf16"),
        fp8_flops=units.parse_flops(fields["fp8"] if fields["fp8"] is not None else fields["bf16"], "topology.gpu.fp8"),
        memory=units.parse_bytes(fields["memory"], "topology.gpu.memory"),
        memory_bandwidth=units.parse_bandwidth(fields["memory_bandwidth"], "topology.gpu.memory_bandwidth"),
    )
