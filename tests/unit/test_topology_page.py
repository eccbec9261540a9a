"""docs/topologies.md says what there is, and what it shows can be built."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from clustersim import fabrics, load_cluster, routes
from clustersim.cluster import build_cluster

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "topologies.md").read_text()
BLOCKS = {next(iter(block)): block for block in map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))}
GPU = yaml.safe_load((ROOT / "topologies" / "h100_sxm.yaml").read_text())["gpu"]


@pytest.mark.parametrize("module", [fabrics, routes], ids=["fabrics", "routes"])
def test_every_fabric_and_policy_stands_in_the_page_with_its_options(module):
    for name in module.__all__:
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}`")]
        for option in inspect.signature(getattr(module, name)).parameters.values():
            if option.kind is option.KEYWORD_ONLY and option.name != "latency":
                assert option.name in row, f"{name} takes {option.name}"


def test_the_ports_shown_make_a_machine():
    cluster = build_cluster("shown", {**BLOCKS["nodes"], "gpu": GPU})
    assert (cluster.n_gpus, len(cluster.links)) == (64, 256)


def test_the_table_shown_routes_as_it_says():
    cluster = load_cluster("ideal_rail", fabric={"name": "leaf_spine", "spines": 4}, routing=BLOCKS["routing"]["routing"])
    way = cluster.routes(np.array([0, 1, 0]), np.array([9, 8, 10]))
    names = [cluster.links[link].name for link in way.links]
    assert names == [
        "nvlink_up 0", "nvlink_down 1", "nic_up 1", "nic_down 9", "nic_up 1", "leaf_up 1.3", "leaf_down 0.3", "nic_down 8",
        "nic_up 0", "leaf_up 0.2", "leaf_down 2.2", "nic_down 10",
    ]  # fmt: skip


def test_the_graph_shown_makes_a_machine():
    cluster = build_cluster("shown", {"nodes": 2, "gpus_per_node": 4, "gpu": GPU, **BLOCKS["graph"]})
    assert {link.kind for link in cluster.links} == {"nvlink_up", "nvlink_down", "nic_up", "nic_down", "trunk"}
