"""Reports without a browser: what they say against what the tables hold, their files, and data that could break them."""

import json
import os
import re
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustersim import InputError
from clustersim.report import html
from clustersim.report.axes import nice_ticks
from clustersim.report.make import newest_results, write_report
from clustersim.report.paper import write_pdf
from clustersim.report.raster_png import encode_png
from clustersim.report.reading import Known, RunData, read_results
from clustersim.report.run_figures import PARTS, figures_of_run, finish_times
from clustersim.report.run_page import page_of_run
from clustersim.report.shapes import DARK, LEVELS, LIGHT, MISSING, ramp
from clustersim.report.sweep_findings import cost, effects, findings_of_sweep, front
from tests.reports import check_page, made_sweep, pages_text, real_run

RUNS = {
    "default": [],
    "dropping": ["capacity.factor=0.75", "exchange=direct"],
    "dense": ["model=deepseek_v2_lite", "model.n_layers=3", "model.n_dense_layers=2", "trace=sampled"],
    "bound": ["network=bound"],
    "one_gpu": ["topology.nodes=1", "topology.gpus_per_node=1"],
    "one_layer": ["model.n_layers=1"],
    "no_compute": ["compute=none"],
    "no_time": ["compute=none", "topology.nodes=1", "topology.gpus_per_node=1"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: real_run(tmp_path_factory.mktemp(name), *overrides) for name, overrides in RUNS.items()}


# ---- a run


@pytest.mark.parametrize("name", RUNS)
def test_a_page_of_any_run_stands_alone(name, folders, tmp_path):
    headline, (file,) = write_report(folders[name], tmp_path / "report.html")
    page = file.read_text()
    check_page(page)
    assert " ".join(headline.split()) in pages_text(page)


def test_the_head_says_what_the_summary_holds(folders, tmp_path):
    row = pl.read_parquet(folders["default"] / "summary.parquet").row(0, named=True)
    headline, _ = write_report(folders["default"], tmp_path / "report.html")
    assert row["compute_s"] > row["exposed_comm_s"], "32 tokens per GPU are little to send"
    assert headline.startswith(f"Computing limits this step: {100 * row['compute_s'] / row['step_s']:.0f}\N{NO-BREAK SPACE}%")
    alone = write_report(folders["no_compute"], tmp_path / "alone.html")[0]
    assert alone.startswith("Communication limits this step: 100\N{NO-BREAK SPACE}%")
    compute = write_report(folders["one_gpu"], tmp_path / "one.html")[0]
    assert compute.startswith("Computing is all of this step")
    assert write_report(folders["no_time"], tmp_path / "none.html")[0] == "This run took no time"


def test_finish_times_end_with_the_step(folders):
    """A GPU's parts but idling sum to when it ends, so the last GPU ends with the step, and time does not run backwards."""
    for folder in folders.values():
        ended = finish_times(pl.read_parquet(folder / "gpus.parquet"))
        step = pl.read_parquet(folder / "summary.parquet")["step_s"][0]
        assert ended[-1].max() == pytest.approx(step, rel=1e-9)
        assert (np.diff(ended, axis=0) >= 0).all()


def test_a_run_of_256_gpus_and_58_layers_fits_into_a_megabyte(folders):
    """Noise in every cell, which compresses worst."""
    rng, n, layers, kinds = np.random.default_rng(0), 256, 58, ("nvlink_up", "nvlink_down", "nic_up", "nic_down")
    like = read_results(folders["default"])
    cells, links = layers * n, len(kinds) * n
    gpus = pl.DataFrame({"layer": np.repeat(np.arange(layers), n), "gpu": np.tile(np.arange(n), layers)})
    gpus = gpus.with_columns(
        **{name: pl.Series(rng.random(cells)) for name in PARTS},
        expert_tokens=pl.Series(rng.integers(0, 10**6, cells)),
    )
    wires = pl.DataFrame({
        "layer": np.repeat(np.arange(layers), links), "link": np.tile(np.arange(links), layers),
        "kind": [kind for kind in kinds for _ in range(n)] * layers,
        "name": [f"{kind} {i}" for kind in kinds for i in range(n)] * layers,
        "capacity_bytes_per_s": np.full(layers * links, 1e9),
        "dispatch_bytes": rng.random(layers * links), "combine_bytes": rng.random(layers * links),
        "busy_s": rng.random(layers * links),
    })  # fmt: skip
    src, dst = np.nonzero(~np.eye(n, dtype=bool))
    tables = {
        "gpus": gpus, "links": wires, "layers": pl.concat([like.tables["layers"][:1]] * layers),
        "experts": gpus.select("layer", pl.col("gpu").alias("expert"), pl.col("expert_tokens").alias("asked")),
        "pairs": pl.DataFrame(
            {"src": src, "dst": dst, "dispatch_bytes": rng.random(src.size), "combine_bytes": rng.random(src.size)}
        ),
    }  # fmt: skip
    summary = Known({**like.summary, "gpus": n, "nodes": 32, "step_s": 100.0})
    run = RunData(folder=like.folder, told=like.told, summary=summary, tables=tables, steps=1)
    page = page_of_run(run, figures_of_run(run))
    check_page(page)
    assert page.count("data:image/png") >= 8


def test_a_run_of_an_older_version_without_a_table_has_a_page_without_its_figure(folders, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    for file in folders["default"].iterdir():
        if file.name not in ("pairs.parquet", "experts.parquet") and file.is_file():
            (old / file.name).write_bytes(file.read_bytes())
    page = write_report(old)[1][0].read_text()
    check_page(page)
    assert 'id="links"' in page
    assert 'id="bytes"' not in page
    assert 'id="load_experts"' not in page


def test_causes_are_shown_where_the_run_was_asked_for_them(folders):
    causes = {"moe_s": 1e-3, "ideal_s": 6e-4, "popularity_s": 1e-4, "source_s": 0.0, "placement_s": 2e-4, "exchange_s": 5e-5,
              "topology_s": 1e-4, "joint_s": -5e-5}  # fmt: skip
    like = read_results(folders["default"])
    run = replace(like, summary=Known({**like.summary, **causes}))
    page = page_of_run(run, figures_of_run(run))
    check_page(page)
    assert "The largest is placement: 200 µs of 1.00 ms, 20.0 %" in pages_text(page)
    assert 'id="causes"' not in page_of_run(like, figures_of_run(like))


# ---- a sweep


def test_a_page_of_a_thousand_jobs_lists_them_all(thousand, tmp_path):
    headline, (file,) = write_report(thousand, tmp_path / "report.html")
    page = file.read_text()
    check_page(page)
    assert page.count("<tr") >= 1001
    said = headline.replace("\N{NO-BREAK SPACE}", " ")
    assert said == "Dropping 25.0 % of the choices makes the step 2.00 × faster than dropping none"


def test_effects_are_those_the_jobs_were_made_of(thousand):
    """The time is a product of one factor per key, so a key's worst over best value is the same whatever the others are."""
    found = {effect.key: effect for effect in effects(read_results(thousand))}
    known = {
        "capacity.factor": 2.0, "exchange": 1.5, "topology.nodes": (1 + 32 / 64) / (1 + 2 / 64), "capacity.pad": 1.3,
        "seed": 1.0009,
    }  # fmt: skip
    assert list(found) == list(known), "the strongest first"
    for key, ratio in known.items():
        assert found[key].matched
        assert found[key].typical == pytest.approx(ratio, rel=1e-9)
        assert found[key].largest == pytest.approx(ratio, rel=1e-9)
    assert found["topology.nodes"].values == ("2", "4", "8", "16", "32")
    assert found["capacity.factor"].values == ("1.0", "1.25", "1.5", "2.0", "null")


def test_keys_that_never_change_alone_are_compared_by_means(folders, tmp_path):
    jobs = [({"seed": str(i), "workload.tokens_per_gpu": str(8 * i)}, {"step_s": float(i)}) for i in (1, 2, 4)]
    sweep = read_results(made_sweep(tmp_path / "s", folders["default"], jobs))
    assert [(effect.matched, effect.typical) for effect in effects(sweep)] == [(False, 4.0)] * 2
    check_page(write_report(tmp_path / "s")[1][0].read_text())


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=30))
def test_the_front_is_what_nobody_beats(points):
    """By definition, pair by pair: a job on the front has nobody who is better in one and no worse in the other."""
    rows = [{"gpus": 1, "step_s": float(t), "tokens_per_s": 1 / t, "drop_rate": d / 10} for t, d in points]
    jobs = [SimpleNamespace(summary=row) for row in rows]

    def beaten(a):
        return any(
            cost(b) <= cost(a) and b.summary["drop_rate"] <= a.summary["drop_rate"]
            and (cost(b), b.summary["drop_rate"]) != (cost(a), a.summary["drop_rate"])
            for b in jobs
        )  # fmt: skip

    def place(job):
        return cost(job), job.summary["drop_rate"]

    assert {place(job) for job in front(jobs)} == {place(job) for job in jobs if not beaten(job)}


BROKEN = {
    "one_job": [({"seed": "1"}, {})],
    "failed": [({"seed": "1"}, None), ({"seed": "2"}, None)],
    "some_failed": [({"seed": "1"}, {}), ({"capacity.factor": "-1"}, None), ({"seed": "3"}, {})],
    "nan": [({"seed": "1"}, {"step_s": float("nan")}), ({"seed": "2"}, {"imbalance": float("inf"), "over_bound": float("nan")})],
    "all_nan": [({"seed": str(i)}, {"step_s": float("nan"), "tokens_per_s": None}) for i in range(3)],
    "no_time": [({"seed": str(i)}, {"step_s": 0.0, "compute_s": 0.0}) for i in range(3)],
    "equal": [({"seed": str(i)}, {}) for i in range(5)],
    "names": [({"trace.path": f"<script>alert({i})</script>&amp;\"'"}, {"step_s": 1.0 + i}) for i in range(3)],
    "long": [({"capacity.drop": "x" * 300, "seed": str(i)}, {"drop_rate": i / 10}) for i in range(40)],
    "other_work": [({"workload.tokens_per_gpu": str(n)}, {"tokens": 8 * n, "step_s": 1e-3 * n**0.5}) for n in (32, 64, 128)],
}


@pytest.mark.parametrize("name", BROKEN)
def test_no_sweep_breaks_the_page(name, folders, tmp_path):
    folder = made_sweep(tmp_path / "sweep", folders["default"], BROKEN[name])
    page = write_report(folder)[1][0].read_text()
    check_page(page)
    assert "<script>alert" not in page
    failed = [keys for keys, columns in BROKEN[name] if columns is None]
    for keys in failed:
        assert "".join(f"{key}={value}: it cannot be" for key, value in keys.items()) in pages_text(page)
    if failed:
        assert f"Failed jobs: {len(failed)}" in page


def test_a_folder_that_cannot_be_read_is_named_and_the_others_shown(folders, tmp_path):
    folder = made_sweep(tmp_path / "sweep", folders["default"], [({"seed": str(i)}, {"step_s": 1.0 + i}) for i in range(3)])
    (folder / f"{2:012x}" / "summary.parquet").write_bytes(b"PAR1 half a file")
    page = write_report(folder)[1][0].read_text()
    assert "Folders that cannot be read: 1" in page
    assert len(read_results(folder).jobs) == 2


def test_the_best_job_takes_the_least_gpu_time_per_token(folders, tmp_path):
    """More tokens take longer, so jobs of different work are ranked by time per token: here 1e-3 / sqrt(n)."""
    sweep = read_results(made_sweep(tmp_path / "s", folders["default"], BROKEN["other_work"]))
    headline = findings_of_sweep(sweep).headline.replace("\N{NO-BREAK SPACE}", " ")
    assert headline == "Best: workload.tokens_per_gpu=128, 2.00 × the tokens per GPU-second of the worst"


def test_twice_the_gpus_have_to_be_twice_as_fast(folders, tmp_path):
    """16 GPUs that take 0.6 of the time of 8 spend 1.2 times the GPU time on a token."""
    jobs = [({"topology.nodes": str(n)}, {"step_s": step, "gpus": 8 * n, "nodes": n}) for n, step in ((1, 1.0), (2, 0.6))]
    sweep = read_results(made_sweep(tmp_path / "s", folders["default"], jobs))
    assert findings_of_sweep(sweep).headline.startswith("Best: topology.nodes=1, 1.20")


def test_replicates_show_their_confidence_interval(folders, tmp_path):
    jobs = [({"capacity.factor": str(i)}, {"step_s": 1e-3 * i, "step_s_ci95": 2e-5}) for i in (1, 2)]
    page = write_report(made_sweep(tmp_path / "s", folders["default"], jobs))[1][0].read_text()
    assert "1.00 ms ± 20.0 µs" in pages_text(page)
    assert "95 % confidence over the seeds" in page


# ---- files


def test_every_figure_is_a_file_too(folders, thousand, tmp_path):
    for folder in (folders["default"], thousand):
        _, (page, *files) = write_report(folder, tmp_path / folder.name / "r.html", ("svg",))
        drawn = set(re.findall(r'<figure id="(\w+)"', page.read_text()))
        assert {file.stem for file in files} == drawn
        assert len(drawn) >= 6
        for file in files:
            root = ElementTree.parse(file).getroot()
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert "var(" not in file.read_text(), "a file of its own has no page to take colours from"


def test_figures_as_pdf_are_the_same_each_time(folders, tmp_path):
    pytest.importorskip("matplotlib")
    for one in figures_of_run(read_results(folders["one_layer"]))[:3]:      # bars, a raster, dots
        files = [tmp_path / name for name in ("a.pdf", "b.pdf")]
        for file in files:
            write_pdf(one.draw(680), file)
        assert files[0].read_bytes() == files[1].read_bytes()
        assert files[0].read_bytes().startswith(b"%PDF")
        assert b"/FontFile2" in files[0].read_bytes(), "fonts are inside, as publishers ask"


def test_a_page_needs_no_matplotlib_and_pdf_says_that_it_does(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_report(folders["default"], tmp_path / "r.html", ("svg",))
    with pytest.raises(InputError, match=r"^report --pdf: needs matplotlib; pip install 'clustersim\[plot\]'$"):
        write_report(folders["default"], tmp_path / "r.html", ("pdf",))


def test_what_is_no_folder_of_results_is_refused(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no finished run"):
        read_results(tmp_path / "empty")
    with pytest.raises(InputError, match=r"there is no such folder; did you mean .*empty\?"):
        read_results(tmp_path / "emty")
    with pytest.raises(InputError, match="holds no results yet"):
        newest_results(tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        write_report(folders["default"], Path("/proc/nothing/report.html"))


def test_without_a_folder_it_is_the_study_or_the_run_that_ended_last(folders, tmp_path):
    single = made_sweep(tmp_path / "runs", folders["default"], [({"seed": "1"}, {})]) / f"{1:012x}"
    assert newest_results(tmp_path) == single
    study = made_sweep(tmp_path / "study", folders["default"], [({"seed": "1"}, {}), ({"seed": "2"}, {})])
    for i, place in enumerate((single, study / f"{1:012x}")):
        (place / "status.json").write_text(json.dumps({"state": "done"}))
        stamp = 2_000_000_000 + i
        os.utime(place / "status.json", (stamp, stamp))
    assert newest_results(tmp_path) == study


# ---- drawing


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12), st.integers(2, 10))
def test_ticks_are_round_evenly_spaced_and_inside(low, span, count):
    high = low + span
    if not high > low or span < 1e-9 * max(abs(low), abs(high)):
        return
    ticks = nice_ticks(low, high, count)
    slack = 1e-6 * span
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    assert len(ticks) <= count + 1
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0], rtol=1e-6) if len(steps) else True


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_png_holds_the_cells(rows, columns, seed):
    """Unpacked by the specification: chunks with their CRC, one byte per pixel behind a filter byte of 0."""
    cells = np.random.default_rng(seed).choice([*range(LEVELS), MISSING], (rows, columns)).astype(np.uint8)
    data, chunks = encode_png(cells), {}
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at = 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        name, body, crc = data[at + 4 : at + 8], data[at + 8 : at + 8 + size], data[at + 8 + size : at + 12 + size]
        assert zlib.crc32(name + body) == int.from_bytes(crc, "big")
        chunks[name] = body
        at += 12 + size
    assert list(chunks) == [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"]
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(rows, columns + 1)
    assert (lines[:, 0] == 0).all()
    assert (lines[:, 1:] == cells).all()
    assert chunks[b"PLTE"][: 3 * LEVELS] == ramp().tobytes()
    assert chunks[b"tRNS"][MISSING] == 0


def luminance(colour):
    """Relative luminance as WCAG 2.2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read_and_parts_of_a_bar_told_apart_without_hue(colours):
    """WCAG 2.2: 4.5:1 for text. Neighbours in a bar differ in luminance too, for those who see no hue; 1.35 is what ours have."""
    assert colours.keys() == LIGHT.keys()
    for ink in ("ink", "muted"):
        assert contrast(colours[ink], colours["surface"]) >= 4.5
    beside = (("compute", "dispatch"), ("dispatch", "combine"), ("combine", "wait"), ("faint", "best"), ("faint", "plain"))
    for below, above in beside:
        assert contrast(colours[below], colours[above]) >= 1.35, (below, above)


def test_ramp_rises_in_luminance():
    light = [luminance("#" + bytes(colour).hex()) for colour in ramp()]
    assert (np.diff(light) > 0).all()


def test_a_table_escapes_what_is_in_it():
    assert "<td>&lt;b&gt;" in html.table(("x",), [("<b>",)])
