"""A machine's YAML, through a networkx graph, to arrays: GPUs, links, routes. No clock, no traffic."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from clustersim import fabrics, handmade, routes, units
from clustersim.gpuspec import GpuSpec, Power, gpu_from, power_from
from clustersim.pick import bind, did_you_mean, find, options_of
from clustersim.places import data_folder, yaml_fault
from clustersim.route_table import read_table
from clustersim.routes import Table, Wires
from clustersim.types import Floats, InputError, Ints, Routes
from clustersim.ways import shortest_ways
from clustersim.wiring import Link, Nics, add_port, empty_graph, number

FIELDS: dict[str, tuple[str, ...]] = {      # what a machine's YAML says; `sources` is for its readers
    "gpu": ("name", "bf16", "fp8", "memory", "memory_bandwidth"),
    "nvlink": ("bandwidth", "achievable", "latency"),
    "nic": ("per_gpu", "bandwidth", "achievable", "latency", "oversubscription", "rails"),
}
OPTIONAL: dict[str, tuple[str, ...]] = {        # what it may leave out: null, or not said at all
    "gpu": (
        "fp4", "sms", "l2_bandwidth", "memory_latency", "bf16_achieved", "fp8_achieved", "fp4_achieved", "memory_achieved"
    ),
}  # fmt: skip
FEW_GPUS = 128          # routes of all pairs of so many are kept
MOST_GPUS = 2**18       # of a machine; half a minute and gigabytes to draw
TOP = ("nodes", "gpus_per_node", *FIELDS, "fabric", "graph", "routing", "power", "sources")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Cluster:
    """A machine. GPU g is GPU `local_of[g]` of node `node_of[g]`; a node is one NVLink domain."""

    name: str
    n_nodes: int
    gpus_per_node: int
    gpu: GpuSpec
    links: tuple[Link, ...]
    graph: nx.DiGraph               # GPUs (in, out) and switches; an edge's attribute `link` is its id
    capacity: Floats                # [links] bytes/s
    latency: Floats                 # [links] seconds
    wires: Wires
    routing: str                    # what the YAML says of `policy`: "ecmp, seed 3"
    policy: Callable[[Wires, Ints, Ints], Routes]
    power: Power | None             # what its devices draw; None: it does not say
    nominal: Mapping[str, float]    # bytes/s of one `nvlink` and one `nic` port as the data sheet has it; 0 without

    @property
    def n_wires(self) -> int:
        """Links that are wires; what comes behind them are lanes (`clustersim.lanes`)."""
        return int(self.wires.latency.size)

    @property
    def n_gpus(self) -> int:
        return self.n_nodes * self.gpus_per_node

    @property
    def node_of(self) -> Ints:
        return np.arange(self.n_gpus) // self.gpus_per_node

    @property
    def local_of(self) -> Ints:
        return np.arange(self.n_gpus) % self.gpus_per_node

    def routes(self, src: Ints, dst: Ints, by_nic: NDArray[np.bool_] | None = None) -> Routes:
        """The links from `src` to `dst`, GPUs [transfers] each, as the machine's policy (`routing.name`) has it.

        Args:
            by_nic: [transfers] whether to take the NICs even where NVLink joins the two.

        Raises:
            InputError: there is no way from a source to its destination.
        """
        if by_nic is None or not by_nic.any():
            every = _every_pair(self.wires, self.policy) if src.size > self.n_gpus else None
            return self.policy(self.wires, src, dst) if every is None else routes.picked(every, src * self.n_gpus + dst)
        return routes.mixed(self.wires, src, dst, by_nic, self.policy)


@lru_cache(maxsize=8)
def _every_pair(wires: Wires, policy: Callable[[Wires, Ints, Ints], Routes]) -> Routes | None:
    """The routes of all pairs of a small machine, which are looked up faster than made; None where that cannot be.

    Our own policies see each pair by itself. A user's may not, and a machine may have pairs without a way.
    """
    n = wires.n_gpus
    if n > FEW_GPUS or not getattr(policy, "func", policy).__module__.startswith("clustersim."):
        return None
    src, dst = np.divmod(np.arange(n * n), n)
    others = np.flatnonzero(src != dst)
    try:
        return routes.spread_out(policy(wires, src[others], dst[others]), others, n * n)
    except InputError:
        return None


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
        fields = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"topology={name}: not a YAML file: {yaml_fault(error)}") from error
    if not isinstance(fields, dict):
        raise InputError(f"topology={name}: {path} holds no fields")
    for key, value in overrides.items():
        fields[key] = {**fields[key], **value} if isinstance(value, Mapping) and isinstance(fields.get(key), dict) else value
    return build_cluster(path.stem, fields)


def build_cluster(name: str, fields: Mapping[str, Any]) -> Cluster:
    """A machine from the fields of its YAML (see `topologies/`).

    Either `nvlink` and `nic` give the ports of every GPU, and `fabric` what is behind the NICs (left out: `crossbar` when
    `nic.oversubscription` is 1, else `leaf_spine` with one spine); or `graph` gives every link. `routing` says which of
    several ways is taken (left out: `shortest`).

    Raises:
        InputError: a key or value that cannot be, or GPUs that cannot reach each other.
    """
    _check_keys(name, fields)
    n_nodes, per_node = (_whole(f"topology.{key}", fields[key]) for key in ("nodes", "gpus_per_node"))
    if n_nodes * per_node > MOST_GPUS:
        raise InputError(f"topology.nodes={n_nodes}: makes {n_nodes * per_node:,} GPUs, and a machine may have {MOST_GPUS:,}")
    graph = empty_graph(n_nodes * per_node)
    rail_of = np.arange(n_nodes * per_node) % per_node
    if "graph" in fields:
        handmade.draw(graph, fields["graph"], n_nodes * per_node)
    else:
        _draw_nvlink(graph, fields["nvlink"], n_nodes, per_node)
        nics = _nics(graph, fields["nic"], n_nodes, per_node)
        if nics is not None:
            _choose(fabrics, "topology.fabric", _fabric(fields, nics))(nics)
            rail_of = rail_of // nics.shared_by % (nics.rails or nics.per_node)
        elif "fabric" in fields:
            raise InputError(f"topology.fabric: {name} has no NICs to join (nic.bandwidth is null)")
    wired = fields.get("graph", fields)
    nominal = {key: _nominal(key, wired.get(key)) for key in ("nvlink", "nic")}
    gpu, power = gpu_from(fields["gpu"]), power_from(fields.get("power"))
    return _freeze(name, n_nodes, per_node, gpu, graph, rail_of, fields.get("routing"), nominal, power)


def _draw_nvlink(graph: nx.DiGraph, nvlink: Mapping[str, Any], n_nodes: int, per_node: int) -> None:
    if (rate := _rate("nvlink", nvlink)) > 0:
        latency = units.parse_seconds(nvlink["latency"], "topology.nvlink.latency")
        for g in range(n_nodes * per_node):
            add_port(graph, g, f"nvswitch {g // per_node}", "nvlink", g, rate, latency)


def _nics(graph: nx.DiGraph, nic: Mapping[str, Any], n_nodes: int, per_node: int) -> Nics | None:
    """The NICs; None for a machine without. Several of one GPU act as one of their sum."""
    each, shared_by = _per_gpu(nic["per_gpu"], per_node)
    over, rails = nic["oversubscription"], nic["rails"]
    if isinstance(over, bool) or not isinstance(over, int | float) or not 1 <= over < float("inf"):
        raise InputError(f"topology.nic.oversubscription={over}: must be a number from 1 up (1 = non-blocking)")
    if not isinstance(rails, int) or rails < 0 or per_node // shared_by % (rails or 1):
        raise InputError(
            f"topology.nic.rails={rails}: must be true (NIC i of every node on rail i), false, or a number that divides "
            f"the {per_node // shared_by} NICs of a node"
        )
    rate = _rate("nic", nic) * each
    if not rate:
        return None
    return Nics(
        graph=graph, nodes=n_nodes, per_node=per_node // shared_by, shared_by=shared_by, rate=rate, oversubscription=float(over),
        latency=units.parse_seconds(nic["latency"], "topology.nic.latency"),
        rails=per_node // shared_by if rails is True else int(rails),
    )  # fmt: skip


def _per_gpu(value: Any, per_node: int) -> tuple[int, int]:
    """`2` as (2 NICs to a GPU, 1 GPU to a NIC); `1/2` as (1, 2)."""
    rule = "must be a whole number from 1 up, or 1/2, 1/4, ... for a NIC that GPUs of a node share evenly"
    try:
        share = Fraction(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else Fraction(0)
    except (ValueError, OverflowError, ZeroDivisionError):
        share = Fraction(0)
    if share <= 0 or 1 not in (share.numerator, share.denominator) or per_node % share.denominator:
        raise InputError(f"topology.nic.per_gpu={value}: {rule}")
    return share.numerator, share.denominator


def _fabric(fields: Mapping[str, Any], nics: Nics) -> Any:
    if "fabric" in fields:
        return fields["fabric"]
    return {"name": "crossbar"} if nics.oversubscription == 1 else {"name": "leaf_spine", "spines": 1}


def _choose(module: ModuleType, key: str, section: Any) -> Callable[..., Any]:
    """The function that a section names, with its options; an option that is null is left out."""
    if not isinstance(section, Mapping) or "name" not in section:
        raise InputError(f"{key}={section}: must name one of {', '.join(sorted(module.__all__))}, as {key}.name")
    name = str(section["name"])
    function = find(module, name, key)
    taken = options_of(function)
    options = {str(k): value for k, value in section.items() if k != "name" and value is not None}
    if unknown := [option for option in options if option not in taken]:
        near = did_you_mean(unknown[0], taken)
        raise InputError(
            f"{key}.{unknown[0]}={options[unknown[0]]}: {name} takes {', '.join(taken) or 'no options'}{near}; null leaves it out"
        )
    chosen = bind(key, name, function, options)
    if missing := [option for option, default in taken.items() if default is inspect.Parameter.empty and option not in options]:
        raise InputError(f"{key}.{missing[0]}: {name} needs it")
    return chosen


def _freeze(
    name: str, n_nodes: int, per_node: int, gpu: GpuSpec, graph: nx.DiGraph, rail_of: Ints, routing: Any,
    nominal: Mapping[str, float], power: Power | None,
) -> Cluster:
    """Number the links, find the ways, choose the policy; check that every GPU reaches every other."""
    n = n_nodes * per_node
    links = number(graph)
    nvlink = _nvlink_domains(graph)
    wires = Wires(
        name=name, gpus_per_node=per_node, rail_of=rail_of, latency=np.array([link.latency for link in links]),
        nvlink=shortest_ways(graph, n, nvlink), network=shortest_ways(graph, n, set(range(len(links))) - nvlink),
    )  # fmt: skip
    routing = {"name": "shortest"} if routing is None else routing
    table: Table | None = None
    if isinstance(routing, Mapping) and routing.get("name") == "table" and "routes" in routing:
        table = read_table(graph, n, per_node, routing["routes"])
        routing = {**routing, "routes": table}
    policy = _choose(routes, "topology.routing", routing)
    cluster = Cluster(
        name=name, n_nodes=n_nodes, gpus_per_node=per_node, gpu=gpu, links=links, graph=graph, wires=wires, policy=policy,
        routing=_said(routing), nominal=nominal, power=power,
        capacity=np.array([link.capacity for link in links]), latency=wires.latency,
    )  # fmt: skip
    relayed = "pxn" in (routing["name"], routing.get("otherwise"))
    if (lost := routes.unreached(wires, relayed=relayed, written=table)) is not None:
        raise routes.complaint(wires, *lost)
    if n > 1:
        cluster.routes(np.array([0]), np.array([n - 1]))        # an option that cannot be is found now
    return cluster


def _said(routing: Mapping[str, Any]) -> str:
    """`ecmp, seed 3`."""
    given = (f"{key} {value}" for key, value in routing.items() if key not in ("name", "routes") and value is not None)
    return ", ".join((str(routing["name"]), *given))


def _nvlink_domains(graph: nx.DiGraph) -> set[int]:
    """The links that lead from GPU to GPU over NVLink alone: those of switches that only NVLink joins, however far."""
    apart = nx.Graph()
    for a, b in graph.edges():
        apart.add_nodes_from(v for v in (a, b) if isinstance(v, str))
        if isinstance(a, str) and isinstance(b, str):
            apart.add_edge(a, b)
    domains: dict[object, int] = {switch: i for i, part in enumerate(nx.connected_components(apart)) for switch in part}
    mixed = {domains[v] for a, b, data in graph.edges(data=True) if not _is_nvlink(data) for v in (a, b) if isinstance(v, str)}
    return {
        data["link"] for a, b, data in graph.edges(data=True)
        if _is_nvlink(data) and not {domains[v] for v in (a, b) if isinstance(v, str)} & mixed
    }  # fmt: skip


def _is_nvlink(data: Mapping[str, Any]) -> bool:
    return str(data["kind"]).startswith("nvlink")


def _check_keys(name: str, fields: Mapping[str, Any]) -> None:
    for key in fields:
        if key not in TOP:
            raise InputError(f"topology.{key}: {name} has no such key{did_you_mean(str(key), TOP)} (known: {', '.join(TOP)})")
    if "graph" in fields and (extra := [key for key in ("nvlink", "nic", "fabric") if key in fields]):
        raise InputError(f"topology.{extra[0]}: {name} has a graph, which says every link; leave {extra[0]} out")
    for section, known in FIELDS.items():
        if section != "gpu" and "graph" in fields:
            continue
        given = fields.get(section)
        if not isinstance(given, Mapping):
            is_what = "is missing" if given is None else f"is {given!r}"
            raise InputError(f"topology.{section}: {is_what} in {name}; it has the fields: {', '.join(known)}")
        allowed = (*known, *OPTIONAL.get(section, ()))
        for key in given:
            if key not in allowed:
                near = did_you_mean(str(key), allowed)
                raise InputError(f"topology.{section}.{key}: there is no such key{near} (known: {', '.join(allowed)})")
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
    return units.parse_bandwidth(fields[key], f"topology.{section}.{key}")


def _nominal(section: str, fields: Any) -> float:
    """Bytes/s of a port as the data sheet has it; 0 for a machine without, or with links drawn by hand."""
    if not isinstance(fields, Mapping) or fields.get("bandwidth") is None:
        return 0.0
    return units.parse_bandwidth(fields["bandwidth"], f"topology.{section}.bandwidth")
