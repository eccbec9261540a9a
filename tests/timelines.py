"""What every time line has to keep, whatever it shows."""

import gzip
import json
from collections import defaultdict
from itertools import pairwise

from clustersim import simulate


def written(result, folder):
    """The events of the file that a result writes, what stands beside them, and the file."""
    object.__setattr__(result.run, "output", folder)
    file = result.save() / "timeline.json.gz"
    told = json.loads(gzip.decompress(file.read_bytes()))
    return told["traceEvents"], told, file


def slices_of(events):
    """The slices of every track, (process, thread) -> in order of time."""
    tracks = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append(event)
    for slices in tracks.values():
        slices.sort(key=lambda event: event["ts"])
    return tracks


def check_events(events, told, needed):
    """Trace Event Format: every event has what its kind needs, and every track with slices a name."""
    assert told["displayTimeUnit"] == "ns"
    assert told["otherData"]["run_id"]
    for event in events:
        assert needed[event["ph"]] | {"pid"} <= event.keys()
        assert event.get("ts", 0) >= 0
    named = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    assert slices_of(events).keys() <= named


def check_slices(events):
    """Slices of a track take time and do not overlap."""
    for slices in slices_of(events).values():
        assert all(event["dur"] > 0 for event in slices)
        assert all(a["ts"] + a["dur"] <= b["ts"] + 1e-6 for a, b in pairwise(slices))      # six digits are written


def check_nothing_else_changes(plain, exported, tmp_path):
    """The same run writes the same bytes; it has the tables and the run_id that it has without a time line."""
    first, again = (written(simulate(exported), tmp_path / name)[2].read_bytes() for name in "ab")
    assert first == again
    without, fewer = simulate(plain), simulate([*exported, "export.events=2000"])
    assert without.run_id == fewer.run_id
    assert all(without.tables[name].equals(fewer.tables[name]) for name in without.tables)
