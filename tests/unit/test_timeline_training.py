"""The time line of a training step against its tables: the format, slices, arrows, and the window."""

import json

import numpy as np
import polars as pl
import pytest

from clustersim import InputError, simulate
from clustersim.results.training_timeline import Window
from tests.reports import TRAINED
from tests.timelines import check_events, check_nothing_else_changes, check_slices, slices_of, written

SHAPES = {
    "plain": [],
    "overlapped": ["parallel.order=dualpipe", "parallel.zero=1"],
    "empty_stages": ["parallel.order=zero_bubble", "parallel.pipeline=4", "parallel.stage_layers=[0,2,2,0]"],
    "chunks": ["parallel.order=interleaved", "parallel.virtual=2"],
    "alone": ["topology.gpus_per_node=1", "parallel.pipeline=1", "model.n_layers=2"],
}


def overrides(*more):
    own = {text.partition("=")[0] for text in more}
    return [*(text for text in TRAINED if text.partition("=")[0] not in own), "export.timeline=true", *more]


@pytest.fixture(scope="module", params=SHAPES)
def made(request, tmp_path_factory):
    result = simulate(overrides(*SHAPES[request.param]))
    return result, *written(result, tmp_path_factory.mktemp("results"))


def test_every_event_has_what_its_kind_needs(made):
    """ph, pid and tid everywhere; X has ts and dur; s and f have id and cat; M names."""
    _, events, told, _ = made
    arrow = {"tid", "id", "cat", "name", "ts"}
    check_events(events, told, {"X": {"tid", "name", "ts", "dur", "args"}, "s": arrow, "f": {*arrow, "bp"}, "M": {"tid", "args"}})


def test_a_device_is_a_track_whose_slices_are_its_step(made):
    """One slice per task that takes time, then gradients, optimiser and weights; none overlaps another of its track."""
    result, events, _, _ = made
    check_slices(events)
    tracks = {tid: slices for (_, tid), slices in slices_of(events).items()}
    columns = ["computed_s", "sent_s", "exchanged_s", "waited_s", "launched_s", "reduce_s", "optimiser_s", "gather_s"]
    for row in result.tables["stages"].iter_rows(named=True):
        busy = sum(event["dur"] for event in tracks.get(2 * row["device"] + 1, ())) * 1e-6
        assert busy == pytest.approx(sum(row[name] for name in columns), rel=1e-6, abs=1e-9)
    ends = max(event["ts"] + event["dur"] for slices in tracks.values() for event in slices)
    assert ends * 1e-6 == pytest.approx(result.summary["step_s"], rel=1e-6)


def test_arrows_join_a_pass_to_the_one_that_made_what_it_needs(made):
    """Forward: the same micro-batch one stage before; back: one stage behind. Both ends lie in slices, time runs forward."""
    _, events, _, _ = made
    starts, ends = ({e["id"]: e for e in events if e["ph"] == phase} for phase in "sf")
    assert starts.keys() == ends.keys()
    slices = [event for event in events if event["ph"] == "X" and "stage" in event["args"]]

    def around(at):
        within = [s for s in slices if s["tid"] == at["tid"] and s["ts"] <= at["ts"] + 1e-6 < s["ts"] + s["dur"] + 1e-6]
        return max(within, key=lambda event: event["ts"])           # six digits are written: neighbours may seem to touch

    for i, start in starts.items():
        a, b = around(start)["args"], around(ends[i])["args"]
        assert a["micro-batch"] == b["micro-batch"]
        assert b["stage"] - a["stage"] == (1 if start["name"] == "activations" else -1)
        assert ends[i]["ts"] >= start["ts"] - 1e-3
    real = [s["args"] for s in slices if s["args"]["what"] == "forward"]
    pairs = {(one["stage"], one["micro-batch"]) for one in real}
    expected = sum((stage - 1, batch) in pairs for stage, batch in pairs)
    forward = sum(start["name"] == "activations" for start in starts.values())
    tids = {s["args"]["stage"]: s["tid"] for s in slices}
    if len(set(tids.values())) == len(tids):            # no two stages on one track: every hand-over crosses devices
        assert forward == expected


def test_the_window_holds_no_more_events_than_asked():
    """1,000 tasks make 1,000 slices and up to as many arrows of two events."""
    n = 500
    tasks = pl.DataFrame({
        "device": np.repeat([0, 1], n), "begin_s": np.r_[np.arange(n), np.arange(n) + 1.5],
        "end_s": np.r_[np.arange(n) + 1, np.arange(n) + 2.5], "kind": ["F"] * 2 * n, "stage": np.repeat([0, 1], n),
        "batch": np.tile(np.arange(n), 2), "stage_back": [None] * 2 * n, "batch_back": [None] * 2 * n,
        **dict.fromkeys(("computed_s", "sent_s", "exchanged_s", "waited_s", "launched_s"), np.full(2 * n, 0.2)),
    })  # fmt: skip
    stages = pl.DataFrame({"device": [0, 1], "stages": ["0", "1"], "reduce_s": [0.0] * 2, "optimiser_s": [0.5] * 2,
                           "gather_s": [0.0] * 2})  # fmt: skip
    some = Window(tasks, stages, most=1000, arrows="all")
    events = list(some.events())
    assert len(events) <= 1000
    assert "of 1,000 tasks, as many as make 1,000 events" in some.note()
    shown = [json.loads(event)["ts"] for event in events if '"ph":"X"' in event]
    assert max(shown) < tasks["begin_s"].sort()[len(shown)] * 1e6, "the first ones"
    every = Window(tasks, stages, most=100_000, arrows="all")
    assert sum('"ph":"s"' in event for event in every.events()) == n
    last = Window(tasks, stages, most=100_000, arrows="last")
    assert sum('"ph":"s"' in event for event in last.events()) == 1, "only the first pass of device 1 is waited for"


def test_the_same_step_writes_the_same_bytes_and_the_same_tables_as_without(tmp_path):
    check_nothing_else_changes(TRAINED, overrides(), tmp_path)


@pytest.mark.parametrize("wrong", ["arrows=some", "events=10", "first_layer=1", "timeline=7"])
def test_what_cannot_be_exported_is_refused_before_the_step(wrong):
    with pytest.raises(InputError, match=r"^export\."):
        simulate(overrides(f"export.{wrong}"))
