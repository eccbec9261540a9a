"""`clustersim report` as a user types it."""

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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "report: results holds no results yet; run clustersim first, or name a folder"),
        (["nowhere"], "report nowhere: there is no such folder"),
        (["a", "b"], "report a b: takes one folder, of a run or of many"),
        (["--png"], "report --png: there is no such flag (--svg and --pdf write every figure, -o FILE says where)"),
        (["-o"], "report -o: names no file; write -o FILE.html"),
    ],
)
def test_what_cannot_be_reported_is_one_line(arguments, said, capsys):
    assert main(["report", *arguments]) == 2
    assert capsys.readouterr().err == f"clustersim: {said}\n"
