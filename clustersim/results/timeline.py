"""A run on a time line, for ui.perfetto.dev: what every GPU did, who sent whom what, how full links were. Simulates nothing.

The format is Chrome's trace events (JSON, "Trace Event Format", Google): times in microseconds, slices of one track nest.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clustersim.cluster import Cluster
from clustersim.engine.gpu import BEGUN, ENDED, SLICES, Played
from clustersim.network.fabric import Exchange
from clustersim.results.pairs import PairBytes
from clustersim.types import Floats, Ints
from clustersim.writing import replacing

COMPUTE, COMMUNICATION = 1, 2           # tracks of a GPU
LINKS = 1_000_000                       # process ids of link classes begin here; those of GPUs are their number + 1
COUNTED = 0.3                           # of the events, at most, count links
INSIDE = 1e-9                           # seconds before the end of a slice at which an arrow still finds it


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Seen:
    """One exchange as it went. Seconds."""

    layer: int
    phase: str
    entered: Floats                     # [gpus]
    through: Floats                     # [gpus] its last byte, in or out
    src: Ints                           # [arrows]
    dst: Ints
    nbytes: Floats
    start: Floats
    finish: Floats


class Recorder:
    """Keeps the exchanges of a window of layers: from `first` on, as many as make no more than `most` events.

    Args:
        arrows: "all" draws every transfer, "last" only the one that each GPU had to wait for longest.
    """

    def __init__(self, cluster: Cluster, *, first: int, most: int, arrows: str) -> None:
        self.cluster, self.first, self.most, self.arrows = cluster, first, most, arrows
        self.layers: list[int] = []         # in the window
        self.thinned = False                # whether arrows were left out because one layer alone had too many
        self.seen: list[Seen] = []
        self._hops: list[tuple[Ints, Floats, Floats, Floats]] = []         # link, bytes, start, finish
        self._events, self._full = 0, False

    def watch(self, layer: int, dispatch: Exchange, combine: Exchange) -> None:
        """Take in a layer; as `engine.gpu.play` shows it."""
        if layer < self.first or self._full:
            return
        both = [self._see(layer, phase, one, self.arrows) for phase, one in (("dispatch", dispatch), ("combine", combine))]
        room = (1 - COUNTED) * self.most - self._events
        if self._size(both) > room and not self.layers and self.arrows == "all":
            both = [self._see(layer, phase, one, "last") for phase, one in (("dispatch", dispatch), ("combine", combine))]
            self.thinned = True
        if self._size(both) > room:
            self._full = True
            return
        self._events += self._size(both)
        self.layers = sorted({*self.layers, layer})
        self.seen += both
        for one in (dispatch, combine):
            row = np.repeat(np.arange(one.transfers.n), np.diff(one.routes.start))
            sent = one.transfers.nbytes[row] * one.routes.weights
            self._hops.append((one.routes.links, sent, one.start[row], one.finish[row]))

    def _size(self, both: list[Seen]) -> int:
        """Events that a layer makes, at most."""
        return sum(2 * one.src.size for one in both) + (len(SLICES) + 2) * self.cluster.n_gpus

    def _see(self, layer: int, phase: str, one: Exchange, arrows: str) -> Seen:
        transfers, n = one.transfers, self.cluster.n_gpus
        through = one.entered.copy()
        for end in (transfers.src, transfers.dst):
            np.maximum.at(through, end, one.finish)
        rows = np.arange(transfers.n)
        if arrows == "last":
            order = np.lexsort((one.finish, transfers.dst))
            rows = order[np.append(transfers.dst[order][1:] != transfers.dst[order][:-1], True)] if transfers.n else rows
        assert through.size == n
        return Seen(
            layer=layer, phase=phase, entered=one.entered, through=through, src=transfers.src[rows], dst=transfers.dst[rows],
            nbytes=transfers.nbytes[rows], start=one.start[rows], finish=one.finish[rows],
        )  # fmt: skip

    def utilisation(self, edges: Floats) -> Floats:
        """How full each link was between the edges, float [links, edges - 1]; a transfer's bytes spread evenly over its time."""
        n = len(self.cluster.links)
        speed, origin = np.zeros((n, edges.size)), np.zeros((n, edges.size))
        for link, sent, start, finish in self._hops:
            rate = sent / np.maximum(finish - start, 1e-12)
            for sign, time in ((1.0, start), (-1.0, np.maximum(finish, start + 1e-12))):
                at = np.searchsorted(edges, time)           # the first edge that sees the change
                real = at < edges.size
                np.add.at(speed, (link[real], at[real]), sign * rate[real])
                np.add.at(origin, (link[real], at[real]), sign * rate[real] * time[real])
        carried = np.cumsum(speed, axis=1) * edges - np.cumsum(origin, axis=1)
        return np.maximum(0.0, np.diff(carried, axis=1)) / np.diff(edges) / self.cluster.capacity[:, None]

    def note(self, n_layers: int) -> str:
        """What of the run is in the file."""
        if not self.layers:
            return f"timeline: empty; export.first_layer={self.first} is past the last MoE layer, or export.events is too small"
        what = f"timeline: MoE layers {self.layers[0]} to {self.layers[-1]} of {n_layers}"
        if self._full:
            what += f", as many as make {self.most:,} events (export.events); export.first_layer moves the window"
        return what + ("; only the last arrow to each GPU, as all are too many" if self.thinned else "")


class Watch:
    """Shown every layer of a step as it ends: adds up bytes of pairs, and hands the layer on to a recorder, if there is one."""

    def __init__(self, n_gpus: int, recorder: Recorder | None) -> None:
        self.pairs, self._recorder = PairBytes(n_gpus), recorder

    def __call__(self, layer: int, dispatch: Exchange, combine: Exchange) -> None:
        self.pairs.watch(layer, dispatch, combine)
        if self._recorder:
            self._recorder.watch(layer, dispatch, combine)


def write_timeline(path: Path, events: Iterable[str], told: Mapping[str, Any]) -> None:
    """Write `timeline.json.gz`, whole or not at all; the same events give the same bytes. `told` goes into its `otherData`."""
    with replacing(path) as temporary, temporary.open("wb") as raw, gzip.GzipFile("", "wb", 5, raw, mtime=0) as packed:
        packed.write(f'{{"displayTimeUnit":"ns","otherData":{json.dumps(dict(told), sort_keys=True)},"traceEvents":[\n'.encode())
        first = True
        for event in events:
            packed.write(("" if first else ",\n").encode() + event.encode())
            first = False
        packed.write(b"\n]}\n")


def timeline_events(recorder: Recorder, played: Played) -> Iterator[str]:
    """The events, as JSON each: names, slices of both streams of every GPU, arrows, and counters of the links."""
    yield from _names(recorder)
    yield from _streams(recorder, played)
    yield from _arrows(recorder)
    yield from _counters(recorder, played)


def _names(recorder: Recorder) -> Iterator[str]:
    cluster = recorder.cluster

    def named(what: str, pid: int, name: str, tid: int = 0) -> str:
        return f'{{"ph":"M","name":"{what}","pid":{pid},"tid":{tid},"args":{{"name":{json.dumps(name)}}}}}'

    for gpu in range(cluster.n_gpus):
        yield named("process_name", gpu + 1, f"GPU {gpu} (node {cluster.node_of[gpu]})")
        yield f'{{"ph":"M","name":"process_sort_index","pid":{gpu + 1},"tid":0,"args":{{"sort_index":{gpu}}}}}'
        yield named("thread_name", gpu + 1, "compute", COMPUTE)
        yield named("thread_name", gpu + 1, "communication", COMMUNICATION)
    for i, kind in enumerate(_kinds(cluster)):
        yield named("process_name", LINKS + i, f"links: {kind}")
        yield f'{{"ph":"M","name":"process_sort_index","pid":{LINKS + i},"tid":0,"args":{{"sort_index":{LINKS + i}}}}}'


def _kinds(cluster: Cluster) -> dict[str, int]:
    return {kind: i for i, kind in enumerate(dict.fromkeys(link.kind for link in cluster.links))}


def _streams(recorder: Recorder, played: Played) -> Iterator[str]:
    if not recorder.layers:
        return
    for each in played.slices():
        if recorder.layers[0] <= each.layer <= recorder.layers[-1]:
            for gpu in np.flatnonzero(each.end > each.begin):
                yield _slice(int(gpu), COMPUTE, each.name, each.layer, each.begin[gpu], each.end[gpu])
    for one in recorder.seen:
        for gpu in np.flatnonzero(one.through > one.entered):
            yield _slice(int(gpu), COMMUNICATION, one.phase, one.layer, one.entered[gpu], one.through[gpu])


def _slice(gpu: int, track: int, name: str, layer: int, begin: float, end: float) -> str:
    start, stop = round(begin * 1e6, 6), round(end * 1e6, 6)        # rounded alike: neighbours touch and do not overlap
    return (
        f'{{"ph":"X","pid":{gpu + 1},"tid":{track},"name":"{name}","ts":{start:.6f},"dur":{stop - start:.6f},'
        f'"args":{{"layer":{layer}}}}}'
    )


def _arrows(recorder: Recorder) -> Iterator[str]:
    """Two events per transfer, in the slices of its exchange. What lands before its GPU has entered ends where that enters."""
    number = 0
    for one in recorder.seen:
        begins = np.clip(one.start, one.entered[one.src], np.maximum(one.through[one.src] - INSIDE, one.entered[one.src]))
        ends = np.clip(one.finish, one.entered[one.dst], np.maximum(one.through[one.dst] - INSIDE, one.entered[one.dst]))
        drawn = (one.through[one.src] > one.entered[one.src]) & (one.through[one.dst] > one.entered[one.dst])
        for i in np.flatnonzero(drawn):
            number += 1
            common = f'"cat":"transfer","name":"{one.phase}","id":{number},"tid":{COMMUNICATION}'
            args = f'"args":{{"bytes":{one.nbytes[i]:.0f}}}'
            yield f'{{"ph":"s",{common},"pid":{one.src[i] + 1},"ts":{begins[i] * 1e6:.6f},{args}}}'
            yield f'{{"ph":"f","bp":"e",{common},"pid":{one.dst[i] + 1},"ts":{ends[i] * 1e6:.6f}}}'


def _counters(recorder: Recorder, played: Played) -> Iterator[str]:
    """How full each used link is, in per cent: a value wherever it changes."""
    if not recorder.layers:
        return
    begin, end = played.marks[recorder.layers[0], BEGUN].min(), played.marks[recorder.layers[-1], ENDED].max()
    end = max(end, *(float(one.through.max()) for one in recorder.seen))
    if end <= begin:
        return
    cluster, kinds = recorder.cluster, _kinds(recorder.cluster)
    room = int(COUNTED * recorder.most / max(1, len(cluster.links))) - 1
    edges = np.linspace(begin, end, max(2, min(100 * len(recorder.layers), room)))
    percent = (100 * recorder.utilisation(edges)).round(1)
    for link in np.flatnonzero(percent.any(axis=1)):
        kind = cluster.links[link].kind
        name = json.dumps(cluster.links[link].name)
        values = np.append(percent[link], 0.0)
        for at in np.flatnonzero(np.append(True, values[1:] != values[:-1])):
            yield (
                f'{{"ph":"C","pid":{LINKS + kinds[kind]},"name":{name},"ts":{edges[at] * 1e6:.6f},'
                f'"args":{{"% used":{values[at]:.1f}}}}}'
            )
