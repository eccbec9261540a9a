"""Reports of training steps: what they say against what the tables hold, and pipelines of any size on a page."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clustersim.report.make import write_report
from clustersim.report.paper import write_pdf
from clustersim.report.pipeline_figures import Row, rows_of, thinned
from clustersim.report.reading import Known, read_results
from clustersim.report.shapes import DARK, LIGHT
from clustersim.report.sweep_findings import findings_of_sweep
from clustersim.report.training_figures import HELD, SHARES, figures_of_training, shares_of
from clustersim.report.training_findings import findings_of_training
from clustersim.report.training_page import page_of_training
from tests.reports import check_page, made_sweep, pages_text, real_run, trained_run

RUNS = {
    "plain": [],
    "overlapped": ["parallel.order=dualpipe", "parallel.zero=1"],
    "split": ["parallel.order=zero_bubble", "parallel.pipeline=4", "parallel.stage_layers=[0,2,2,0]"],
    "chunks": ["parallel.order=interleaved", "parallel.virtual=2"],
    "dense": ["model=llama_3_2_1b", "parallel.tensor=2"],
    "skewed": ["trace=tiny", "parallel.pipeline=1", "capacity.factor=1.0", "exchange=direct"],
    "one_gpu": ["topology.gpus_per_node=1", "parallel.pipeline=1", "model.n_layers=2"],
    "no_compute": ["compute=none"],
    "no_time": ["compute=none", "topology.gpus_per_node=1", "parallel.pipeline=1", "model.n_layers=2"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: trained_run(tmp_path_factory.mktemp(name), *overrides) for name, overrides in RUNS.items()}


@pytest.mark.parametrize("name", RUNS)
def test_a_page_of_any_training_step_stands_alone(name, folders, tmp_path):
    headline, (file,) = write_report(folders[name], tmp_path / "report.html")
    page = file.read_text()
    check_page(page)
    assert " ".join(headline.split()) in pages_text(page)
    assert ('id="pipeline"' in page) == (name != "no_time")


def test_the_head_says_what_limits_the_step(folders):
    run = read_results(folders["plain"])
    row = run.summary
    share = f"{100 * row['compute_s'] / row['step_s']:.0f}\N{NO-BREAK SPACE}%"
    assert findings_of_training(run).headline.startswith(f"Computing limits this training step: {share}")
    step = row["step_s"]
    for parts, said in (
        ({"compute_s": 0.3, "bubble_s": 0.6, "exposed_comm_s": 0.1}, "The pipeline's bubble limits this training step: 60"),
        ({"compute_s": 0.3, "bubble_s": 0.1, "exposed_comm_s": 0.6}, "Communication limits this training step: 60"),
        ({"compute_s": 0.4, "bubble_s": 0.3, "exposed_comm_s": 0.3}, "Computing is only 40"),
    ):
        other = replace(run, summary=Known({**row, **{key: value * step for key, value in parts.items()}}))
        assert findings_of_training(other).headline.startswith(said)
    assert findings_of_training(read_results(folders["no_time"])).headline == "This step took no time"


def test_the_shares_of_every_device_are_its_step(folders):
    """What is left out of the picture is nothing but rounding."""
    assert len({column for _, _, columns in SHARES for column in columns}) == 9
    for name in RUNS:
        run = read_results(folders[name])
        sums = np.sum([values for _, _, values in shares_of(run)], axis=0) if shares_of(run) else 0.0
        np.testing.assert_allclose(sums, run.summary["step_s"], rtol=1e-7)


def test_the_picture_of_the_pipeline_has_every_pass(folders):
    """Bars in seconds are the tasks of the table, and end with the step on the last device to end."""
    for name in ("plain", "overlapped", "split", "chunks"):
        run = read_results(folders[name])
        rows, tasks = rows_of(run), run.tables["tasks"]
        passes = sum(len(row.batches) - sum(not one for one in row.batches) for row in rows)
        assert passes == tasks.height
        assert max(row.end.max() for row in rows) == pytest.approx(run.summary["step_s"], rel=1e-9)
        for row in rows:
            assert (row.begin[1:] >= row.end[:-1] - 1e-12).all(), "a device does one thing after the other"


KINDS = [("forward",), ("backward",), ("forward", "backward")]


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 3.0]), st.integers(1, 9), st.sampled_from(KINDS)), min_size=1, max_size=60),
    st.integers(2, 40),
)
def test_thinning_keeps_to_what_was_there(parts, most):
    """No more pieces than asked, in order, none over a stretch in which a device had nothing of that kind."""
    ends = np.cumsum([gap + long for gap, long, _ in parts])
    row = Row(
        begin=ends - [long for _, long, _ in parts], end=ends, fills=[fills for _, _, fills in parts],
        batches=[(str(i),) for i in range(len(parts))],
    )  # fmt: skip
    drawn = thinned(row, 0.0, float(ends[-1]), most, float(ends[-1]) / 830)
    assert len(drawn) <= most
    assert all(a[1] <= b[0] + 1e-9 for a, b in pairwise(drawn))
    for begin, end, fills, _ in drawn:
        own = [max(0.0, min(e, end) - max(b, begin)) for b, e, f in zip(row.begin, row.end, row.fills, strict=True) if f == fills]
        assert sum(own) > 0


@pytest.mark.parametrize(("devices", "passes"), [(16, 360), (64, 1000), (1, 4000), (256, 64)])
def test_pipelines_of_any_size_fit_into_a_megabyte(devices, passes, folders):
    """Passes of uneven lengths, every second one an overlapped pair, which is drawn as two bars."""
    rng, like = np.random.default_rng(0), read_results(folders["overlapped"])
    took = rng.uniform(0.5, 1.5, (devices, passes))
    end = np.cumsum(took + rng.uniform(0.0, 0.3, took.shape), axis=1)
    step = float(end.max()) * 1.02
    both = np.tile(np.arange(devices * passes) % 2 == 0, 1)
    tasks = pl.DataFrame({
        "device": np.repeat(np.arange(devices), passes), "begin_s": (end - took).ravel(), "end_s": end.ravel(),
        "kind": np.where(both, "F+B", "W"), "stage": np.repeat(np.arange(devices), passes),
        "batch": np.tile(np.arange(passes), devices), "stage_back": np.repeat(np.arange(devices), passes),
        "batch_back": np.tile(np.arange(passes), devices),
        **dict.fromkeys(("computed_s", "sent_s", "exchanged_s", "waited_s", "launched_s"), took.ravel() / 5),
    }).with_columns(pl.when(pl.col("kind") == "F+B").then(pl.col("stage_back", "batch_back")))  # fmt: skip
    stages = pl.concat([like.tables["stages"][:1]] * devices).with_columns(device=pl.Series(np.arange(devices)))
    summary = Known({**like.summary, "step_s": step})
    run = replace(like, tables={**like.tables, "tasks": tasks, "stages": stages}, summary=summary)
    page = page_of_training(run, figures_of_training(run))
    check_page(page)


def test_every_colour_is_one_of_both_lights():
    assert LIGHT.keys() == DARK.keys()
    assert {fill for fill, _, _ in SHARES} | set(HELD.values()) <= LIGHT.keys()


def test_figures_are_written_as_files_too(folders, tmp_path):
    pytest.importorskip("matplotlib")
    _, files = write_report(folders["overlapped"], tmp_path / "report.html", ["svg"])
    names = {file.stem for file in files[1:]}
    assert {"pipeline", "devices", "split", "memory"} <= names
    figure = figures_of_training(read_results(folders["overlapped"]))[0]
    first, again = tmp_path / "a.pdf", tmp_path / "b.pdf"
    write_pdf(figure.draw(680), first)
    write_pdf(figure.draw(680), again)
    assert first.read_bytes() == again.read_bytes()


def test_a_sweep_of_training_steps_has_its_own_words(folders, tmp_path):
    jobs = [({"parallel.order": name}, {"step_s": step, "compute_s": 1e-3, "bubble_s": step - 1.1e-3, "exposed_comm_s": 1e-4})
            for name, step in (("one_f_one_b", 2e-3), ("zero_bubble", 1.5e-3))]  # fmt: skip
    sweep = read_results(made_sweep(tmp_path / "s", folders["plain"], jobs))
    told = " ".join(findings_of_sweep(sweep).sentences).replace("\N{NO-BREAK SPACE}", " ")
    assert "The pipeline's bubble is 27 % to 45 % of the step, exposed communication 5 % to 7 %." in told
    page = write_report(tmp_path / "s")[1][0].read_text()
    check_page(page)
    assert "model TFLOP/s" in pages_text(page)


def test_a_folder_of_training_and_forward_runs_is_one_page(folders, tmp_path):
    """Columns of either kind; a dash where a job has none."""
    both = tmp_path / "both"
    for i, run in enumerate((folders["plain"], real_run(tmp_path / "forward"))):
        place = both / f"{i:012x}"
        place.mkdir(parents=True)
        for file in run.iterdir():
            (place / file.name).write_bytes(file.read_bytes())
    page = write_report(both)[1][0].read_text()
    check_page(page)
    said = pages_text(page)
    assert "bubble" in said
    assert "T/bound" in said
