"""What traces cost: `python -m tests.bench.traces [--large GB]`. CPU seconds, one core, compiled and warm, best of three.

--large writes a trace of so many GB into the folder for temporary files, and says how much memory it takes to go through it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clustersim.exchange.counted import traffic_of
from clustersim.types import Placement
from clustersim.workload.trace_file import open_trace
from clustersim.workload.trace_kernel import count_choices, count_distinct
from clustersim.workload.trace_stream import stream_columns

RANKS, LAYERS, EXPERTS, TOP_K = 2048, 58, 256, 8
GROUP = 65_536


class Machine:
    """2,048 GPUs, 8 to a node."""

    n_gpus, n_nodes, gpus_per_node = RANKS, RANKS // 8, 8
    node_of, local_of = np.arange(RANKS) // 8, np.arange(RANKS) % 8


def ids_of(rng: np.random.Generator, tokens: int) -> np.ndarray:
    """Distinct experts of uneven popularity, uint16 [tokens, layers, top_k]."""
    order = np.array([rng.permutation(EXPERTS) for _ in range(LAYERS)], np.uint16)
    start = (rng.random((tokens, LAYERS)) ** 1.6 * EXPERTS).astype(np.int32)
    stride = rng.integers(0, EXPERTS // 2, (tokens, LAYERS), np.int32) * 2 + 1
    return order[np.arange(LAYERS)[None, :, None], (start[:, :, None] + stride[:, :, None] * np.arange(TOP_K)) % EXPERTS]


def written(folder: Path, groups: int, compression: str) -> Path:
    """A trace of so many row groups, each of the same expert ids; its tokens come from ranks in order."""
    ids = ids_of(np.random.default_rng(0), GROUP)
    width = LAYERS * TOP_K * 2
    blob = pa.Array.from_buffers(pa.binary(width), GROUP, [None, pa.py_buffer(ids)])
    meta = {"schema": "moetrace/1", "kind": "tokens", "num_layers": LAYERS, "num_experts": EXPERTS, "top_k": TOP_K,
            "ids_dtype": "uint16", "model": "made up"}
    types = {"step": pa.uint32(), "rank": pa.uint16(), "seq": pa.uint32(), "pos": pa.uint32(), "phase": pa.uint8()}
    fields = [pa.field(name, kind, nullable=False) for name, kind in types.items()]
    schema = pa.schema([*fields, pa.field("expert_ids", blob.type, nullable=False)], metadata={"moetrace": json.dumps(meta)})
    folder.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(folder / "tokens.parquet", schema, compression=compression, use_dictionary=list(types)) as writer:
        for group in range(groups):
            row = np.arange(group * GROUP, (group + 1) * GROUP)
            rank = row * RANKS // (groups * GROUP)
            columns = {"step": row * 0, "rank": rank, "seq": row // 512, "pos": row % 512, "phase": row * 0}
            arrays = [pa.array(values.astype(types[name].to_pandas_dtype())) for name, values in columns.items()]
            writer.write_table(pa.table([*arrays, blob], schema=schema), row_group_size=GROUP)
    return folder


def best(what: Callable[[], object]) -> float:
    seconds = []
    for _ in range(3):
        began = time.process_time()
        what()
        seconds.append(time.process_time() - began)
    return min(seconds)


def speed() -> None:
    """Counting from bytes in memory, reading alone, both together; 1 million tokens' worth, from three row groups."""
    placement = Placement(gpu_of=np.arange(EXPERTS) * (RANKS // EXPERTS), expert_of=np.arange(EXPERTS))
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), 3, "zstd")
        file = open_trace(path)
        parts = []
        for _, columns in stream_columns(file, ["rank", "expert_ids"]):
            ids = columns["expert_ids"].view("<u2").reshape(-1, LAYERS, TOP_K).copy()
            parts.append((ids, columns["rank"].astype(np.int64)))
        places, node_of = np.arange(EXPERTS, dtype=np.int32), (np.arange(EXPERTS) * (RANKS // EXPERTS) // 8).astype(np.int32)
        copies = np.zeros((LAYERS, RANKS, EXPERTS), np.int32)
        nodes = np.zeros((LAYERS, RANKS, Machine.n_nodes), np.int32)

        def direct() -> None:
            for ids, source in parts:
                count_choices(ids, source, places, copies)

        def dedup() -> None:
            for ids, source in parts:
                count_distinct(ids, source, places, node_of, Machine.node_of, copies, nodes)

        def read() -> None:
            for _ in stream_columns(file, ["rank", "expert_ids"]):
                pass

        def owner(rank: np.ndarray, first: int) -> np.ndarray:
            return rank.astype(np.int64)

        rows = {
            "direct, from bytes in memory": (direct, 80), "node dedup, from bytes in memory": (dedup, 25),
            "reading the bytes alone": (read, None),
            "direct, reading included": (lambda: traffic_of(path, owner, placement, Machine()), 80),
            "node dedup, reading included": (lambda: traffic_of(path, owner, placement, Machine(), node_dedup=True), 25),
        }
        done = file.n_tokens * LAYERS
        print(f"{EXPERTS} experts, top-{TOP_K}, {RANKS:,} ranks, {LAYERS} layers; {file.n_tokens:,} tokens, uint16 ids")
        for name, (what, must) in rows.items():
            what()
            seconds = best(what)
            rate = done / seconds / 1e6
            verdict = "" if must is None else f"  must be {must}: {'holds' if rate >= must else 'missed'}"
            each = seconds * 1e6 / file.n_tokens
            print(f"  {name:<34} {rate:6.0f} M token-layers/s, {each:5.2f} s per million tokens{verdict}")


def memory(gigabytes: float) -> None:
    """Peak memory of a process that goes through a large trace."""
    each = GROUP * LAYERS * TOP_K * 2
    groups = max(1, round(gigabytes * 1e9 / each))
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder) / "trace", groups, "none")
        size = (path / "tokens.parquet").stat().st_size
        print(f"a trace of {size / 1e9:.1f} GB, {groups * GROUP:,} tokens")
        for what in ("nothing", "replay", "traffic", "survey"):
            done = subprocess.run([sys.executable, "-m", "tests.bench.traces", "--peak", what, str(path)],
                                  capture_output=True, text=True, check=True)
            print(f"  {what:<8} {done.stdout.strip()}", flush=True)


def peak(what: str, path: Path) -> None:
    began = time.process_time()
    if what == "survey":
        from clustersim.workload.trace_survey import survey

        survey(path)
    elif what == "traffic":
        placement = Placement(gpu_of=np.arange(EXPERTS) * 8, expert_of=np.arange(EXPERTS))
        traffic_of(path, lambda rank, first: rank.astype(np.int64), placement, Machine(), node_dedup=True)
    elif what == "replay":
        from clustersim.workload.streams import Recorded
        from clustersim.workload.trace_source import recorded_tokens

        tokens = recorded_tokens(path)
        assert isinstance(tokens, Recorded)
        tokens.read(np.arange(0, tokens.n_tokens, max(1, tokens.n_tokens // 100_000)))
    status = Path("/proc/self/status").read_text()          # getrusage would count the parent's memory at the fork
    most = int(status.partition("VmHWM:")[2].split()[0])
    print(f"{most / 2**20:.2f} GiB at most, {time.process_time() - began:.0f} CPU s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--large", type=float)
    parser.add_argument("--peak", nargs=2)
    chosen = parser.parse_args()
    if chosen.peak:
        peak(chosen.peak[0], Path(chosen.peak[1]))
    elif chosen.large:
        memory(chosen.large)
    else:
        speed()


if __name__ == "__main__":
    main()
