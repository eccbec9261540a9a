"""Sweeps under what befalls them: other numbers of workers, kills, a full disk, a second sweep, jobs that break or die."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

import clustersim
from clustersim.cli import main
from clustersim.results.manifests import read_manifest
from clustersim.results.store import TABLES
from clustersim.sweeps import pool

HOME = str(Path(clustersim.__file__).parents[1])
SMALL = ["topology.nodes=1", "workload.tokens_per_gpu=32", "model.n_layers=2", "network=bound"]
SWEEP = ["-m", *SMALL, "capacity.factor=1.0,null", "placement.slots=32,64", "seed=0,1"]          # 8 jobs
WIDE = ["-m", *SMALL, "capacity.factor=1.0,2.0,null", "placement.slots=32,64", "seed=0,1,2,3"]   # 24 jobs


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [HOME, str(tmp_path), os.environ.get("PYTHONPATH")])))
    return tmp_path / "here"


@pytest.fixture
def many_processes(monkeypatch):
    """Workers are started even for jobs that are over in no time."""
    monkeypatch.setattr(pool, "WORTH_S", 0.0)


def contents(folder):
    """Everything that the runs of a study hold, but for how long they took."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            data = file.read_bytes()
            if file.name == "run.json":
                data = {key: value for key, value in json.loads(data).items() if key != "wall_s"}
            found[str(file.relative_to(folder))] = data
    return found


def undisturbed(sweep, output="undisturbed"):
    assert main([*sweep, "workers=0", f"output={output}"]) == 0
    return contents(Path(output))


def begun(sweep, *more):
    """A sweep in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "clustersim.cli", *sweep, *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def done_in(folder):
    return [path.parent for path in Path(folder).rglob("status.json") if json.loads(path.read_text())["state"] == "done"]


def wait_for(reached, seconds=240.0):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


# ---- how many work on it


@pytest.mark.parametrize("workers", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 8))])
def test_the_number_of_workers_changes_nothing(many_processes, workers, capsys):
    expected = undisturbed(SWEEP)
    capsys.readouterr()
    assert main([*SWEEP, f"workers={workers}", "output=pooled"]) == 0
    assert contents(Path("pooled")) == expected
    out, err = capsys.readouterr()
    assert "8 runs in pooled/runs\n" in out
    assert all(" of 8 jobs, 0 failed" in line for line in err.splitlines()), "what a slow machine says once a minute"


def test_shards_of_a_sweep_share_its_jobs_and_merge_by_being_in_one_folder(capsys):
    expected = undisturbed(SWEEP)
    for i in (1, 2, 3):
        assert main([*SWEEP, "workers=0", f"shard={i}/3", "output=sharded"]) == 0
    out = capsys.readouterr().out
    assert [f"{n} runs in sharded/runs\n" in out for n in (2, 3)] == [True, True]
    (whole,), parts = ([*Path(name).rglob("sweep-*.json")] for name in ("undisturbed", "sharded"))
    assert len(parts) == 3
    assert all(read_manifest(part).jobs == read_manifest(whole).jobs for part in parts)
    for part in parts:
        part.unlink()
    del expected[str(whole.relative_to("undisturbed"))]
    assert contents(Path("sharded")) == expected
    assert clustersim.scan("sharded").collect().height == 8


@pytest.mark.parametrize("shard", ["0/2", "3/2", "half", "1/0", "1", "-1/2", "1/2/3"])
def test_a_shard_is_one_of_so_many(shard, capsys):
    assert main([*SWEEP, "workers=0", f"shard={shard}"]) == 2
    assert capsys.readouterr().err.startswith(f"clustersim: shard={shard}: must be i/n")
    assert not Path("results").exists()


@pytest.mark.parametrize("wrong", ["workers=-1", "workers=many", "workers=1.5"])
def test_workers_are_counted(wrong, capsys):
    assert main([*SWEEP, wrong]) == 2
    assert capsys.readouterr().err.startswith(f"clustersim: {wrong}: must be a whole number from 0 up")


def test_how_a_sweep_is_run_cannot_be_swept(capsys):
    for text in ("workers=1,2", "shard=1/2,2/2", "output=a,b"):
        assert main(["-m", *SMALL, text]) == 2
        assert "at a time" in capsys.readouterr().err


# ---- what is there is not done again


def test_a_repeated_sweep_does_only_what_is_missing_or_failed(capsys):
    assert main([*SWEEP, "workers=0"]) == 0
    expected = contents(Path("results"))
    printed = capsys.readouterr().out
    folders = sorted(Path("results/runs").glob("*/"))
    written = {folder: (folder / "run.json").stat().st_mtime_ns for folder in folders}
    (folders[0] / "status.json").unlink()
    (folders[1] / "gpus.parquet").unlink()
    (folders[2] / "status.json").write_text('{"state": "failed", "reason": "it broke"}')
    (folders[2] / "error.txt").write_text("long ago")
    assert main([*SWEEP, "workers=0"]) == 0
    again = capsys.readouterr().out
    assert again.splitlines()[:-1] == printed.splitlines()[:-1]
    assert again.splitlines()[-1] == "8 runs in results/runs (5 of them were there already)"
    assert contents(Path("results")) == expected
    assert [(folder / "run.json").stat().st_mtime_ns > written[folder] for folder in folders] == [True] * 3 + [False] * 5


def test_an_edited_file_is_not_answered_with_old_results(tmp_path, capsys):
    mine = tmp_path / "mine.yaml"
    mine.write_text((Path(HOME) / "topologies" / "ideal_rail.yaml").read_text())
    command = ["-m", *SMALL, "workers=0", f"topology={mine}", "seed=0,1"]
    assert main(command) == 0
    mine.write_text("# a remark\n" + mine.read_text())
    assert main(command) == 0
    assert "2 of them were there already" in capsys.readouterr().out
    mine.write_text(mine.read_text().replace("450 GB/s", "449 GB/s"))
    assert main(command) == 0
    assert "already" not in capsys.readouterr().out
    assert len(done_in("results")) == 4


# ---- kills


def killed_and_restarted(sweep, kills, rng, whom):
    """Kill a sweep with SIGKILL so many times, when a random number of further jobs are done or being written."""
    for _ in range(kills):
        process = begun(sweep, "workers=2", "output=killed")
        before, more = len(done_in("killed")), rng.randrange(0, 4)
        wait_for(lambda: len(done_in("killed")) >= before + more or process.poll() is not None)     # noqa: B023
        time.sleep(rng.random() * 0.05)
        with_group = whom == "group" or rng.random() < 0.5
        (os.killpg if with_group else os.kill)(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
    process = begun(sweep, "workers=2", "output=killed")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def test_a_sweep_that_is_killed_goes_on_where_it_was():
    expected = undisturbed(SWEEP)
    killed_and_restarted(SWEEP, 1, random.Random(1), "group")
    assert contents(Path("killed")) == expected


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["group", "either"])
def test_a_sweep_killed_five_times_ends_like_one_that_was_not(whom):
    """`either`: sometimes only the process that gives out the jobs, whose workers then end what they have in hand."""
    expected = undisturbed(WIDE)
    assert len(done_in("undisturbed")) == 24
    killed_and_restarted(WIDE, 5, random.Random(0), whom)
    wait_for(lambda: contents(Path("killed")).keys() == expected.keys())
    assert contents(Path("killed")) == expected


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them():
    process = begun(["-m", *SMALL, "seed=range(0,200)"], "workers=2", "output=killed")
    wait_for(lambda: len(done_in("killed")) >= 2)
    group = os.getpgid(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)

    def nobody_left():
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        return False

    wait_for(nobody_left, 20)


def test_ctrl_c_keeps_what_is_done_and_says_so():
    process = begun(["-m", *SMALL, "seed=range(0,200)"], "workers=2", "output=stopped")
    wait_for(lambda: len(done_in("stopped")) >= 3)
    os.killpg(process.pid, signal.SIGINT)               # as a terminal does: to all of them
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    assert err == "interrupted; finished runs are kept\n"
    assert clustersim.scan("stopped").collect().height >= 3


@pytest.mark.slow
def test_two_sweeps_into_one_folder_do_not_disturb_each_other():
    expected = undisturbed(SWEEP)
    both = [begun(SWEEP, "workers=1", "output=shared") for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert contents(Path("shared")) == expected


# ---- jobs that break, jobs that die, a disk that is full

DOING = """
import os, signal
from clustersim.exchange import direct

def {name}(phase, routing, placement, cluster, model, *, dies: bool = False):
    if dies:
        {how}
    return direct(phase, routing, placement, cluster, model)
"""


@pytest.fixture
def own_exchange(tmp_path, monkeypatch):
    """A user's exchange that does something with half of the jobs."""

    def make(name, how):
        (tmp_path / f"{name}_module.py").write_text(DOING.format(name=name, how=how))
        monkeypatch.syspath_prepend(tmp_path)
        return ["-m", *SMALL, "exchange=direct", f"exchange.name={name}_module:{name}", "+exchange.dies=false,true", "seed=0,1"]

    return make


def failed_in(folder):
    told = [json.loads(path.read_text()) for path in Path(folder).rglob("status.json")]
    return [status for status in told if status["state"] == "failed"]


def test_a_job_that_dies_takes_nothing_with_it(own_exchange, many_processes, capsys):
    sweep = own_exchange("deadly", "os.kill(os.getpid(), signal.SIGKILL)")
    assert main([*sweep, "workers=2"]) == 1
    out, err = capsys.readouterr()
    assert "2 runs in results/runs" in out
    assert err.count("clustersim: failed: +exchange.dies=True") == err.count("\n") == 2
    assert err.count("its process was killed by SIGKILL (out of memory?)") == 2
    assert len(failed_in("results")) == 2
    assert len(done_in("results")) == 2


def test_a_job_that_breaks_leaves_its_reason_and_its_traceback(own_exchange, capsys):
    sweep = own_exchange("broken", "raise ZeroDivisionError('of mine')")
    assert main([*sweep, "workers=0"]) == 1
    out, err = capsys.readouterr()
    assert "2 runs in results/runs" in out
    assert err.count("ZeroDivisionError: of mine") == 2
    assert "Traceback" not in err
    (one, two) = failed_in("results")
    assert one["reason"] == two["reason"] == "ZeroDivisionError: of mine"
    (details, _) = [path.read_text() for path in Path("results").rglob("error.txt")]
    assert details.startswith("Traceback")
    assert "broken_module.py" in details


def test_a_disk_that_is_full_stops_the_sweep_and_keeps_what_is_done(monkeypatch, capsys):
    real, wrote = pl.DataFrame.write_parquet, []

    def full_after_two_runs(self, file, **options):
        wrote.append(file)
        if len(wrote) > 2 * len(TABLES) + 2:
            raise OSError(28, "No space left on device")
        return real(self, file, **options)

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full_after_two_runs)
    assert main([*SWEEP, "workers=0"]) == 2
    out, err = capsys.readouterr()
    assert "2 runs in results/runs" in out
    assert "cannot be written (No space left on device)" in err
    assert "stopped: 5 jobs not begun; the same command goes on with them" in err
    assert len(done_in("results")) == 2
    monkeypatch.setattr(pl.DataFrame, "write_parquet", real)
    assert main([*SWEEP, "workers=0"]) == 0
    results = contents(Path("results"))
    assert results == undisturbed(SWEEP)
