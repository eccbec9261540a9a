"""Folders of results for the tests of reports: real small runs, and sweeps of as many jobs as one likes made from one of them."""

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import polars as pl

from clustersim import simulate

SMALL = ["topology.nodes=2", "topology.gpus_per_node=4", "workload.tokens_per_gpu=32", "model.n_layers=3"]


def real_run(folder, *overrides):
    """The folder of a small run."""
    own = {text.partition("=")[0] for text in overrides}
    result = simulate([*(text for text in SMALL if text.partition("=")[0] not in own), *overrides, f"output={folder}"])
    return result.save()


TRAINED = [
    "workload=training", "topology.nodes=1", "topology.gpus_per_node=4", "model.n_layers=4", "workload.sequence=256",
    "workload.global_batch=16", "placement.slots=null", "parallel.pipeline=2", "workload.cuda_graphs=all",
]  # fmt: skip


def trained_run(folder, *overrides):
    """The folder of a small training step."""
    own = {text.partition("=")[0] for text in overrides}
    dense = [text for text in TRAINED if text.partition("=")[0] not in own and not ("model" in own and "n_layers" in text)]
    return simulate([*dense, *overrides, f"output={folder}"]).save()


def pages_text(page):
    """What a reader sees: the page without style, script and tags."""
    text = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))


def check_page(page):
    """It stands alone, its pictures are XML, and no number in it is none."""
    assert len(page.encode()) < 1_000_000
    assert "http" not in page
    assert not re.search(r'(src|href)="(?!data:|#)|@import|<link|url\(', page)
    for picture in re.findall(r"<svg.*?</svg>", page, flags=re.S):
        ElementTree.fromstring(picture)
    assert not re.search(r"\b(nan|inf|None|null %|-?Infinity)\b", pages_text(page)), "a number that is none"
    assert not re.search(r'="[^"]*\b(nan|inf)\b', page)


def made_sweep(folder, like, jobs):
    """A folder of jobs that are copies of the run `like` in all but their overrides and some columns of their summary;
    tokens per second follow.

    `jobs` lists (overrides as a dict of text, columns as a dict); columns None: the job failed, because of its first override.
    """
    told = json.loads((like / "run.json").read_text())
    row = pl.read_parquet(like / "summary.parquet").row(0, named=True)
    for i, (keys, columns) in enumerate(jobs):
        place = Path(folder) / f"{i + 1:012x}"
        place.mkdir(parents=True)
        asked = [f"{key}={value}" for key, value in keys.items()]
        if columns is None:
            status = {"state": "failed", "reason": f"{asked[0]}: it cannot be", "overrides": asked}
            (place / "status.json").write_text(json.dumps(status))
            continue
        config = json.loads(json.dumps(told["config"]))
        for key, value in keys.items():
            *path, leaf = key.split(".")
            at = config
            for part in path:
                at = at.setdefault(part, {})
            if isinstance(at.get(leaf), dict):
                at[leaf]["name"] = value
            else:
                at[leaf] = value
        (place / "run.json").write_text(json.dumps({**told, "config": config, "overrides": asked, "run_id": place.name}))
        made = {**row, **columns}
        if made["step_s"] is not None and math.isfinite(made["step_s"]) and "tokens_per_s" not in columns:
            made["tokens_per_s"] = made["tokens"] / made["step_s"] if made["step_s"] else None
        pl.DataFrame([made]).write_parquet(place / "summary.parquet")
        (place / "status.json").write_text('{"state": "done"}')
    return Path(folder)


def thousand_jobs():
    """1,000 jobs over five keys, 5 x 2 x 2 x 5 x 10, whose time is a product of what each key does: known effects."""
    jobs = []
    for factor, slow in (("1.0", 1.0), ("1.25", 1.1), ("1.5", 1.2), ("2.0", 1.4), ("null", 2.0)):
        for pad, more in (("false", 1.0), ("true", 1.3)):
            for exchange, wide in (("node_dedup", 1.0), ("direct", 1.5)):
                for nodes in (2, 4, 8, 16, 32):
                    for seed in range(10):
                        step = 1e-3 * slow * more * wide * (1 + nodes / 64) * (1 + seed * 1e-4)
                        dropped = 0.0 if factor == "null" else 0.25 / float(factor) ** 3
                        keys = {"capacity.factor": factor, "capacity.pad": pad, "exchange": exchange}
                        keys |= {"topology.nodes": str(nodes)}
                        jobs.append((
                            {**keys, "seed": str(seed)},
                            {"step_s": step, "drop_rate": dropped, "compute_s": 1e-4, "exposed_comm_s": step - 1e-4},
                        ))  # fmt: skip
    return jobs
