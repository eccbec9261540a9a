"""`--json`: one document on stdout and nothing else, equal to what the tables hold."""

import json
from pathlib import Path

import polars as pl
import pytest

from clustersim.cli import main
from clustersim.places import GROUPS, group_folder, options

SMALL = ["topology.nodes=1", "workload.tokens_per_gpu=32", "model.n_layers=2", "network=bound"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys, *arguments, code=0):
    """The document, and stderr; what JSON does not have (NaN) is refused."""
    assert main([*arguments]) == code
    out, err = capsys.readouterr()

    def refused(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(out, parse_constant=refused), err


def test_a_run_as_json_is_its_tables(capsys):
    document, err = said(capsys, *SMALL, "--json")
    assert err == ""
    summary = pl.read_parquet(f"{document['folder']}/summary.parquet").row(0, named=True)
    assert document["summary"] == summary
    assert document["run_id"] == summary["run_id"]
    assert document["layers"] == pl.read_parquet(f"{document['folder']}/layers.parquet").to_dicts()
    assert document["notes"] == json.loads(Path(document["folder"], "run.json").read_text())["notes"] != []


def test_numbers_that_json_does_not_have_are_null(capsys):
    document, _ = said(capsys, *SMALL, "--json", "compute=none", "topology.gpus_per_node=1")
    assert document["summary"]["step_s"] == 0.0
    assert document["summary"]["over_bound"] is None


def test_a_sweep_as_json_tells_every_job_in_order(capsys):
    sweep = ["-m", "--json", *SMALL, "workers=0", "capacity.factor=1.0,-1,null"]
    document, err = said(capsys, *sweep, code=2)
    assert err.count("\n") == err.count("clustersim: failed: capacity.factor=-1") == 1
    jobs = document["jobs"]
    assert [job["overrides"][-1] for job in jobs] == [f"capacity.factor={value}" for value in ("1.0", "-1", "null")]
    assert [job["state"] for job in jobs] == ["done", "failed", "done"]
    assert [job["summary"] is None for job in jobs] == [False, True, False]
    assert jobs[1]["fault"] == "input"
    assert jobs[1]["reason"].startswith("capacity.factor=-1: must be")
    assert document["left"] == 0
    assert {f"{document['folder']}/{job['run_id']}" for job in jobs} == {job["folder"] for job in jobs}
    again, _ = said(capsys, *sweep, code=2)
    assert [job["state"] for job in again["jobs"]] == ["reused", "failed", "reused"]
    assert [job["summary"] for job in again["jobs"]] == [job["summary"] for job in jobs]


def test_a_sweep_whose_jobs_all_fail_alike_is_a_document_and_one_line(capsys):
    document, err = said(capsys, "-m", "--json", *SMALL, "workers=0", "seed=0,1", "capacity.factor=-1", code=2)
    assert [job["state"] for job in document["jobs"]] == ["failed", "failed"]
    assert err.startswith("clustersim: capacity.factor=-1: must be")
    assert err.count("\n") == 1


def test_what_cannot_be_composed_leaves_stdout_empty(capsys):
    assert main(["-m", "--json", *SMALL, "seed=0,1", "capcity.factor=1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "did you mean capacity.factor?" in err


def test_config_and_options_as_json(capsys):
    config, _ = said(capsys, "--cfg", "--json", *SMALL)
    assert config["capacity"]["factor"] is None
    assert config["topology"]["nodes"] == 1
    assert said(capsys, "list", "--json")[0] == {group: options(group_folder(group)) for group in GROUPS}
    assert list(said(capsys, "list", "--json", "network")[0]) == ["network"]
