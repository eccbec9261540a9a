"""Every number we ship says where it comes from: topologies by key, models by the configuration they were published with."""

import re
from pathlib import Path

import pytest
import yaml

from clustersim.architecture import describe
from clustersim.units import parse_bandwidth, parse_bytes, parse_flops, parse_seconds

ROOT = Path(__file__).parents[2]
TOPOLOGIES = sorted((ROOT / "topologies").glob("*.yaml"))
MODELS = sorted((ROOT / "clustersim" / "conf" / "model").glob("*.yaml"))


def leaves(tree, prefix=""):
    """(dotted key, value) of everything in `tree` that is not a group."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def is_number(value):
    """A number, or text that begins with one: a quantity with its unit."""
    return not isinstance(value, bool) and (isinstance(value, int | float) or bool(re.match(r"[\d.]", str(value or ""))))


def describes_itself(path):
    first = path.read_text().partition("\n")[0]
    return first.startswith("# ") and len(first) > 20


@pytest.mark.parametrize("path", TOPOLOGIES, ids=lambda path: path.stem)
def test_every_number_of_a_topology_has_its_source_and_every_source_a_number(path):
    tree = yaml.safe_load(path.read_text())
    sources = tree.pop("sources")
    assert {key for key, value in leaves(tree) if is_number(value)} == sources.keys()
    assert all(isinstance(source, str) and len(source) > 10 and "\n" not in source for source in sources.values())


@pytest.mark.parametrize("path", TOPOLOGIES, ids=lambda path: path.stem)
def test_every_quantity_of_a_topology_can_be_read(path):
    tree = yaml.safe_load(path.read_text())
    parse_flops(tree["gpu"]["bf16"], "gpu.bf16")
    if tree["gpu"]["fp8"] is not None:          # null: no FP8 units
        parse_flops(tree["gpu"]["fp8"], "gpu.fp8")
    parse_bytes(tree["gpu"]["memory"], "gpu.memory")
    parse_bandwidth(tree["gpu"]["memory_bandwidth"], "gpu.memory_bandwidth")
    sections = tree.get("graph", tree).items()
    wires = {key: fields for key, fields in sections if isinstance(fields, dict) and "achievable" in fields}
    assert wires.keys() >= {"nvlink", "nic"}
    for group, fields in wires.items():
        nominal = parse_bandwidth(fields["bandwidth"], f"{group}.bandwidth")
        if (reached := fields["achievable"]) is not None:
            assert parse_bandwidth(reached, f"{group}.achievable") <= nominal, "what is reached cannot exceed the wire"
        parse_seconds(fields["latency"], f"{group}.latency")


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_model_loads_and_names_its_configuration(path):
    assert describe(yaml.safe_load(path.read_text())).name == path.stem
    assert re.search(r"^# Source .*https://\S+", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_number_of_a_model_says_beside_it_what_it_is(path):
    """A zero says that there is none of it and needs no source."""
    for line in path.read_text().splitlines():
        key, _, rest = line.partition(":")
        value, _, comment = rest.partition("#")
        if not line.startswith("#") and is_number(value.strip()) and float(value) != 0:
            assert comment.strip(), f"{key} has no source"


@pytest.mark.parametrize("path", TOPOLOGIES + MODELS, ids=lambda path: path.stem)
def test_the_first_line_says_what_it_is(path):
    assert describes_itself(path)


def test_there_is_something_to_check():
    assert {path.stem for path in TOPOLOGIES} >= {"h100_sxm", "h800_sxm", "gb200_nvl72", "ideal_rail"}
    assert len(MODELS) >= 8
