"""The machine of a case: its GPU's topology, as many of its GPUs as took part, and their NIC. Simulates nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from clustersim.cluster import Cluster, load_cluster
from clustersim.pick import did_you_mean
from clustersim.types import InputError
from clustersim.validation.notes import needed

TOPOLOGIES = {                  # `gpu` of a case -> a file of topologies/
    "a100_sxm": "a100_sxm", "h100_sxm": "h100_sxm", "h200_sxm": "h200_sxm", "h800_sxm": "h800_sxm",
    "b200": "b200_hgx", "b300": "b300_hgx", "gb200": "gb200_nvl72", "gb300": "gb300_nvl72",
    "b200_hgx": "b200_hgx", "b300_hgx": "b300_hgx", "gb200_nvl72": "gb200_nvl72", "gb300_nvl72": "gb300_nvl72",
    "b200_sxm": "b200_hgx", "b300_sxm": "b300_hgx",
    "a100": "a100_sxm", "h100": "h100_sxm", "h200": "h200_sxm", "h800": "h800_sxm",
}  # fmt: skip
NIC = re.compile(r"(\S+?[bB]/?p?s)(?: per GPU)?")


def machine(case: Mapping[str, Any]) -> Cluster:
    """The GPUs that a case names, on as few nodes as hold them.

    Keys: `gpu`; `gpus` (1), `gpus_per_node` (that of the topology), `nic` ("400Gb/s per GPU"; null: the topology's).

    Raises:
        InputError: no topology for the GPU, GPUs that do not fill their nodes, a NIC that cannot be read.
    """
    (gpu,) = needed(case, "gpu")
    if gpu not in TOPOLOGIES:
        near = did_you_mean(str(gpu), TOPOLOGIES)
        raise InputError(f"case.gpu={gpu}: no topology has it{near} (known: {', '.join(TOPOLOGIES)})")
    return _machine(TOPOLOGIES[gpu], case.get("gpus", 1), case.get("gpus_per_node"), case.get("nic"))


@lru_cache(maxsize=32)
def _machine(name: str, gpus: Any, per_node: Any, nic: Any) -> Cluster:
    for key, value in (("gpus", gpus), ("gpus_per_node", per_node)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"case.{key}={value}: must be a whole number from 1 up")
    own = load_cluster(name, nodes=1).gpus_per_node if per_node is None else per_node
    inside = min(gpus, own)
    if gpus % inside:
        raise InputError(f"case.gpus={gpus}: do not fill nodes of {own}")
    options: dict[str, Any] = {"nodes": gpus // inside, "gpus_per_node": inside}
    if nic is not None:
        found = NIC.fullmatch(str(nic))
        if found is None:
            raise InputError(f"case.nic={nic}: must be a rate per GPU, for example 400Gb/s per GPU")
        options["nic"] = {"bandwidth": found[1], "achievable": None, "per_gpu": 1}
    return load_cluster(name, **options)
