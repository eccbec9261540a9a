"""`clustersim report` as a user types it."""

import os
import re

import pytest

from clustersim.cli import main

SMALL = ["topology.nodes=1", "workload.tokens_per_gpu=64", "model.n_layers=2"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_a_study_to_its_page_in_two_commands(empty_folder, capsys):
    """The newcomer's path: what ends it is a page whose first words answer what the study asks, and are printed too."""
    assert main(["+experiment=capacity_factor", *SMALL]) == 0
    capsys.readouterr()
    assert main(["report"]) == 0
    headline, where = capsys.readouterr().out.splitlines()
    assert where == "report of results/capacity_factor in results/capacity_factor/report.html"
    page = (empty_folder / "results/capacity_factor/report.html").read_text()
    assert "What a capacity factor costs and saves" in page
    assert re.search(r"<h1>(.*?)</h1>", page)[1] == headline
    assert page.count("<tr") > 10
    assert main([*SMALL]) == 0
    (run,) = (empty_folder / "results/runs").iterdir()
    capsys.readouterr()
    assert main(["report"]) == 0, "now a single run is the newest"
    assert f"report of results/runs/{run.name} in" in capsys.readouterr().out
    assert main(["report", f"results/runs/{run.name}", "--svg", "-o", "here/x.html"]) == 0
    assert re.search(r"in here/x\.html, (\d+) figures in here/figures$", capsys.readouterr().out.strip())
    assert len(list((empty_folder / "here/figures").glob("*.svg"))) >= 4


def rows_of(page):
    """What the first table of a page lists: a row per job."""
    return re.findall(r"<tr", re.search(r"<table.*?</table>", page, re.S)[0])[1:]


def test_a_sweep_is_reported_whole_and_alone(empty_folder, capsys):
    """It shares its folder with single runs and other sweeps."""
    tiny = [*SMALL, "network=bound", "workers=0"]
    runs = empty_folder / "results/runs"
    assert main([*tiny, "seed=9"]) == 0
    assert main(["-m", *tiny, "seed=0,1,2"]) == 0
    (first,) = runs.glob("sweep-*.json")
    assert main(["report"]) == 0
    assert "report of results/runs in results/runs/report.html" in capsys.readouterr().out
    page = (runs / "report.html").read_text()
    assert len(rows_of(page)) == 3
    assert "1 more there, not of this sweep" in page
    assert main(["-m", *tiny, "capacity.factor=1,-1"]) == 2
    assert main(["report", "results/runs"]) == 0
    page = (runs / "report.html").read_text()
    assert len(rows_of(page)) == 1
    assert "1 of 2 jobs failed" in page
    assert main(["report", "results/runs", "--all"]) == 0
    assert len(rows_of((runs / "report.html").read_text())) == 1 + 3 + 1
    assert main(["report", str(first)]) == 0
    assert len(rows_of(first.with_suffix(".html").read_text())) == 3
    capsys.readouterr()
    assert main([*tiny, "seed=8"]) == 0
    assert main(["report"]) == 0
    assert re.search(r"report of results/runs/\w{12} in", capsys.readouterr().out), "a single run is the newest"


def test_a_sweep_that_was_killed_is_reported_as_far_as_it_came(empty_folder, capsys, monkeypatch):
    from clustersim.sweeps import run

    def killed(*_):
        raise MemoryError("as if it were killed")

    tiny = ["-m", *SMALL, "network=bound", "workers=0", "seed=0,1,2,3"]
    with monkeypatch.context() as patched:
        real = run.pool.run_job
        patched.setattr(run.pool, "run_job", lambda job, told: killed() if "seed=2" in job else real(job, told))
        with pytest.raises(MemoryError):
            main(tiny)
    assert main(["report"]) == 0
    page = (empty_folder / "results/runs/report.html").read_text()
    assert len(rows_of(page)) == 2
    assert "2 jobs of the sweep have not been run yet" in page
    (told,) = (empty_folder / "results/runs").glob("sweep-*.json")
    os.utime(told, ns=(0, 0))
    capsys.readouterr()
    assert main(["report"]) == 0
    assert "report of results/runs in" in capsys.readouterr().out, "a kill came between the end of a job and its being listed"
    assert main(tiny) == 0
    assert main(["report"]) == 0
    page = (empty_folder / "results/runs/report.html").read_text()
    assert len(rows_of(page)) == 4
    assert "have not been run" not in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "report: results holds no results yet; run clustersim first, or name a folder"),
        (["nowhere"], "report nowhere: there is no such folder"),
        (["a", "b"], "report a b: takes one folder, of a run or of many"),
        (["--png"], "report --png: there is no such flag (--svg, --pdf: every figure; --all: of all runs; -o FILE)"),
        (["-o"], "report -o: names no file; write -o FILE.html"),
    ],
)
def test_what_cannot_be_reported_is_one_line(arguments, said, capsys):
    assert main(["report", *arguments]) == 2
    assert capsys.readouterr().err == f"clustersim: {said}\n"
