"""Tables of jobs in little room: nothing is broken, and what is left out is said."""

import io

import pytest
from rich.console import Console

from clustersim.results.swept import SweptTable, short_names

TABLE = SweptTable(
    keys=("capacity.factor", "topology.nic.oversubscription"),
    jobs=(("1.25", "1"), ("null", "2")),
    results={"step": ("12.4 ms", "13.0 ms"), "exposed": ("7.11 ms", "7.56 ms"), "to best": ("1.00", "1.05")},
    caption="exposed: waits", spare=("exposed", "elsewhere"), best=(True, False),
)  # fmt: skip


def printed(width, table=TABLE):
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize(("keys", "names"), [
    (("capacity.factor", "placement.replica"), ["factor", "replica"]),
    (("prefill.topology.nodes", "decode.topology.nodes"), ["prefill.topology.nodes", "decode.topology.nodes"]),
    (("topology.nic.bandwidth", "topology.nvlink.bandwidth", "seed"), ["nic.bandwidth", "nvlink.bandwidth", "seed"]),
    (("exchange", "decode.exchange"), ["exchange", "decode.exchange"]),
])  # fmt: skip
def test_short_names_are_the_last_words_that_tell_keys_apart(keys, names):
    assert short_names(keys) == names


def test_whole_names_where_there_is_room():
    lines = printed(120)
    assert lines[0].split() == ["capacity.factor", "topology.nic.oversubscription", "step", "exposed", "to", "best"]
    assert lines[3:] == ["exposed: waits"]


def test_last_words_then_fewer_results_then_numbers():
    """The rows are 6 + 1 + 16 + 1 + 7 + 1 + 7 + 1 + 7 + 1 = 48 columns with the last words, 40 without `exposed`."""
    assert printed(48)[0].split() == ["factor", "oversubscription", "step", "exposed", "to", "best"]
    assert printed(47)[0].split() == ["factor", "oversubscription", "step", "to", "best"]
    assert "no room for exposed: --json" in " ".join(printed(47))
    assert "oversubscription: topology.nic.oversubscription" in " ".join(printed(47))
    lines = printed(39)
    assert lines[0].split() == ["job", "step", "exposed", "to", "best"]
    assert "job 2: capacity.factor=null topology.nic.oversubscription=2" in " ".join(lines)


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80])
def test_no_number_is_broken(width):
    lines = printed(width)
    assert all(len(line) <= max(width, 29) for line in lines)           # the longest word is 29 long
    assert any("12.4 ms" in line for line in lines)


def test_a_table_that_swept_nothing():
    lines = printed(80, SweptTable(keys=(), jobs=((),), results={"step": ("1 ms",)}, caption=""))
    assert lines == ["step", "1 ms"]
