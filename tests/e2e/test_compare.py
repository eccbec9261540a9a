"""Two runs side by side, in the terminal and as values for a script."""

import json
from pathlib import Path

import pytest

import clustersim as cs
from clustersim.cli import main

SMALL = ["topology.nodes=1", "workload.tokens_per_gpu=16", "model.n_layers=2", "network=bound"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of runs by a word for each."""
    folder = tmp_path_factory.mktemp("runs")
    asked = {
        "plain": [], "dropping": ["capacity.factor=0.5"], "other": ["network=fluid", "trace=sampled", "exchange=direct"],
        "causes": ["causes=true"],
    }  # fmt: skip
    return {word: str(cs.simulate([*SMALL, *more, f"output={folder}"]).save()) for word, more in asked.items()}


def compared(capsys, *arguments):
    assert main(["compare", *arguments]) == 0
    return capsys.readouterr().out


def test_what_differs_in_config_and_in_result_is_shown_in_80_columns(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = compared(capsys, runs["plain"], runs["dropping"])
    assert all(len(line) <= 80 for line in out.splitlines()[3:])        # above stand the folders
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "capacity.factor null 0.5" in lines
    assert any(line.startswith("dropped choices 0.00 % ") and line.endswith(" % -") for line in lines)
    (step,) = (line for line in lines if line.startswith("step "))
    a, b = (cs.scan(Path(runs[word])).collect()["step_s"].item() for word in ("plain", "dropping"))
    assert step.endswith(f" {b / a:.3f}")
    assert "\033" not in out, "no colours but on a terminal"


def test_where_another_option_is_taken_its_keys_go_without_saying(runs, capsys):
    lines = [" ".join(line.split()) for line in compared(capsys, runs["plain"], runs["other"]).splitlines()]
    for line in ("network bound fluid", "trace tiny sampled", "exchange node_dedup direct"):
        assert line in lines
    assert not any(line.startswith(("trace.", "network.", "exchange.")) for line in lines)


def test_a_run_beside_itself(runs, capsys):
    out = compared(capsys, runs["plain"], runs["plain"])
    assert "the same config" in out
    assert {line.split()[-1] for line in out.splitlines() if line.startswith(("step", "compute", "tokens/s"))} == {"1.000"}


def test_causes_are_compared_where_both_have_them(runs, capsys):
    assert "cause: popularity" in compared(capsys, runs["causes"], runs["causes"])
    assert "cause: popularity" not in compared(capsys, runs["causes"], runs["plain"])


def test_values_for_a_script(runs, capsys):
    told = json.loads(compared(capsys, "--json", runs["plain"], runs["dropping"]))
    assert (told["a"], told["b"]) == (runs["plain"], runs["dropping"])
    assert told["config"] == {"capacity.factor": {"a": None, "b": 0.5}}
    step = told["results"]["step_s"]
    assert step["ratio"] == step["b"] / step["a"] < 1
    assert told["results"]["drop_rate"]["ratio"] is None
    other = json.loads(compared(capsys, "--json", runs["plain"], runs["other"]))
    assert other["config"]["network.resolution"] == {"a": None, "b": 0.0}


def test_what_is_no_run_is_said_to_be_none(runs, capsys, tmp_path):
    (tmp_path / "status.json").write_text('{"state": "failed", "reason": "it broke"}')
    cases = {
        (runs["plain"],): "is one run; name two or more", (runs["plain"], "nowhere"): "compare nowhere: is not the folder of a",
        (runs["plain"], str(tmp_path)): "failed: it broke", (runs["plain"], "--yaml"): "there is no such flag",
    }  # fmt: skip
    for arguments, said in cases.items():
        assert main(["compare", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert said in err
        assert err.count("\n") == 1


def test_three_runs_are_one_table_of_the_keys_in_which_they_differ(runs, capsys):
    lines = compared(capsys, runs["plain"], runs["dropping"], runs["other"]).splitlines()
    assert lines[0].split()[:4] == ["network", "capacity.factor", "trace", "exchange"]
    assert [line.split()[0] for line in lines[1:4]] == ["bound", "bound", "fluid"]
    told = json.loads(compared(capsys, "--json", runs["plain"], runs["dropping"], runs["other"]))
    assert [job["keys"]["capacity.factor"] for job in told["jobs"]] == ["null", "0.5", "null"]


def test_without_a_name_it_is_the_last_sweep_and_a_run_id_may_be_cut_short(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare"]) == 2
    assert "there is no sweep in results" in capsys.readouterr().err
    assert main(["-m", *SMALL, "capacity.factor=0.5,1.0", "workers=0"]) == 0
    swept = capsys.readouterr().out
    assert main(SMALL) == 0                 # a later single run is no sweep
    capsys.readouterr()
    again = compared(capsys)
    assert again.splitlines()[:-1] == swept.splitlines()[:-1]
    assert again.splitlines()[-1] == "2 runs of the last sweep in results/runs"
    ids = sorted(path.name for path in (tmp_path / "results" / "runs").iterdir() if path.is_dir())
    assert compared(capsys, ids[0][:6], ids[1]) == compared(capsys, *(f"results/runs/{name}" for name in ids[:2]))
