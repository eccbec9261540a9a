"""The time line against the tables of the same run: the format, the slices, the arrows, the counters, the window."""

from collections import defaultdict
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from clustersim import InputError, simulate
from tests.timelines import check_events, check_nothing_else_changes, check_slices, slices_of, written

SMALL = ["topology.nodes=2", "topology.gpus_per_node=4", "workload.tokens_per_gpu=32", "model.n_layers=3", "export.timeline=true"]
SHAPES = {
    "chained": [],
    "direct": ["exchange=direct"],
    "bound": ["network=bound"],
    "dense": ["model=deepseek_v2_lite", "model.n_layers=3", "model.n_dense_layers=1", "trace=sampled"],
    "sprayed": ["topology=multi_plane", "exchange=direct", "topology.fabric.split=true", "topology.routing.name=spray",
        "topology.routing.then=null", "topology.routing.seed=null", "topology.fabric.nodes_per_leaf=1"],
    "one_gpu": ["topology.nodes=1", "topology.gpus_per_node=1"],
}  # fmt: skip


def overrides(*more, drop=()):
    own = {text.partition("=")[0] for text in more} | set(drop)
    return [*(text for text in SMALL if text.partition("=")[0] not in own), *more]


@pytest.fixture(scope="module", params=SHAPES)
def made(request, tmp_path_factory):
    result = simulate(overrides(*SHAPES[request.param]))
    return result, *written(result, tmp_path_factory.mktemp("results"))


def test_every_event_has_what_its_kind_needs(made):
    """ph, pid and ts everywhere; X has dur; s and f have id and cat; C has numbers in args; M names."""
    _, events, told, _ = made
    arrow = {"tid", "id", "cat", "name", "ts"}
    needed = {"X": {"tid", "name", "ts", "dur"}, "s": arrow, "f": {*arrow, "bp"}, "C": {"name", "ts", "args"}, "M": {"args"}}
    check_events(events, told, needed)
    assert all(isinstance(value, float) for event in events if event["ph"] == "C" for value in event["args"].values())


def test_slices_of_a_track_do_not_overlap(made):
    check_slices(made[1])


def test_the_compute_track_is_the_table_of_gpus(made):
    """The same marks, once as slices and once as columns."""
    result, events, _, _ = made
    names = {"attention": "attention_s", "stalled by dispatch": "dispatch_s", "experts": "expert_s"}
    names |= {"stalled by combine": "combine_s", "shared experts": "other_s"}
    first = next(layer for layer, row in enumerate(result.tables["layers"]["dropped"]) if row is not None)
    gpus = result.tables["gpus"].filter(pl.col("layer") >= first)
    for name, column in names.items():
        total = sum(event["dur"] for event in events if event["ph"] == "X" and event["tid"] == 1 and event["name"] == name)
        assert total * 1e-6 == pytest.approx(gpus[column].sum(), rel=1e-6, abs=1e-9)


def test_arrows_are_the_transfers_and_lie_in_slices(made):
    """Without a slice around its end Perfetto does not draw an arrow."""
    result, events, _, _ = made
    starts, ends = ({e["id"]: e for e in events if e["ph"] == phase} for phase in "sf")
    assert starts.keys() == ends.keys()
    assert len(starts) + len(ends) == sum(event["ph"] in "sf" for event in events), "an id is used once"
    slices = slices_of(events)
    for at in (*starts.values(), *ends.values()):
        assert any(s["ts"] <= at["ts"] < s["ts"] + s["dur"] for s in slices[at["pid"], at["tid"]] if s["name"] == at["name"])
    sent = defaultdict(float)
    for i, start in starts.items():
        sent[start["pid"] - 1, ends[i]["pid"] - 1] += start["args"]["bytes"]
    pairs = result.tables["pairs"]
    told = dict(zip(zip(pairs["src"], pairs["dst"], strict=True), pairs["dispatch_bytes"] + pairs["combine_bytes"], strict=True))
    assert sent.keys() == told.keys()
    assert all(sent[pair] == pytest.approx(told[pair], rel=1e-6) for pair in sent)


def test_counters_add_up_to_the_bytes_of_the_links(made):
    """Used x capacity x time; per cent are rounded to a tenth, so the sum is off by at most 0.05 % of the time line."""
    result, events, _, _ = made
    counted = defaultdict(list)
    for event in events:
        if event["ph"] == "C":
            counted[event["name"]].append((event["ts"] * 1e-6, event["args"]["% used"] / 100))
    links = result.tables["links"].group_by("name").agg(pl.sum("busy_s"))
    span = result.summary["step_s"]
    for name, busy in links.iter_rows():
        points = counted.get(name, [])
        used = sum(share * (after - at) for (at, share), (after, _) in pairwise(points))
        assert used == pytest.approx(busy, abs=6e-4 * span)
        assert not points or points[-1][1] == 0


def test_the_same_run_writes_the_same_bytes_and_the_same_tables_as_without(tmp_path):
    check_nothing_else_changes(overrides(drop=["export.timeline"]), overrides(), tmp_path)


def test_the_window_holds_no_more_events_than_asked(tmp_path):
    """8 GPUs: a layer is 2 x 56 arrows of two events and 56 slices, so 700 events hold two of three layers."""
    def of(*more):
        result = simulate(overrides("exchange=direct", *more))
        events, *_ = written(result, tmp_path / "-".join(more))
        layers = {event["args"]["layer"] for event in events if event["ph"] == "X"}
        return layers, [event for event in events if event["ph"] != "M"], result.notes[-1]

    layers, events, note = of("export.events=1000")
    assert layers == {0, 1}
    assert len(events) <= 1000
    assert "layers 0 to 1 of 3, as many as make 1,000 events" in note
    layers, _, note = of("export.first_layer=2")
    assert layers == {2}
    assert "layers 2 to 2 of 3" in note
    layers, events, note = of("export.first_layer=3")
    assert not layers
    assert not events
    assert "past the last MoE layer" in note
    _, events, _ = of("export.arrows=last")
    ends = [event["pid"] for event in events if event["ph"] == "f"]
    assert np.bincount(ends)[1:].tolist() == [6] * 8, "one for each GPU, exchange and layer"


@pytest.mark.parametrize("wrong", ["arrows=some", "events=10", "first_layer=-1", "timeline=7"])
def test_what_cannot_be_exported_is_refused_before_the_run(wrong):
    with pytest.raises(InputError, match=r"^export\."):
        simulate(overrides(f"export.{wrong}"))
