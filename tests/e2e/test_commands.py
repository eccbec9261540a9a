"""What a user types, and what they get: words on the terminal, files in a folder, an exit code."""

import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

import clustersim
from clustersim.cli import COMMANDS, main
from clustersim.places import GROUPS, PACKAGE, group_folder, options
from clustersim.results.store import SCHEMA_VERSION, TABLES

SMALL = ["topology.nodes=1", "workload.tokens_per_gpu=64", "model.n_layers=2", "workers=0"]
FILES = {"run.json", "status.json", *(f"{table}.parquet" for table in TABLES)}
HOME = str(Path(clustersim.__file__).parents[1])
ENVIRONMENT = {
    **os.environ, "COLUMNS": "80", "PYTHONPATH": os.pathsep.join(filter(None, [HOME, os.environ.get("PYTHONPATH")])),
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _compiled():
    """So that no run has to say that it compiles."""
    clustersim.flow_times([1.0], [[0]], [1.0], 0.0)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path / "here"


def runs(folder, study="runs"):
    return sorted((folder / "results" / study).glob("*/"))


def digests(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.parquet")}


def tables(folder):
    return {name: pl.read_parquet(folder / f"{name}.parquet") for name in TABLES}


def test_the_default_run_from_a_fresh_interpreter(empty_folder):
    """The main job as it is: 64 GPUs, the shipped trace, the real entry point."""
    done = subprocess.run(
        [sys.executable, "-m", "clustersim.cli"], capture_output=True, text=True, timeout=120, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert " ".join(lines[0].split()) == "layer dispatch compute combine wait load dropped T/bound busiest link"
    assert [line.split()[0] for line in lines[1:25]] == [str(layer) for layer in range(24)]
    assert all(len(line.rstrip()) <= 80 for line in lines[:-1])
    assert "6 layers repeat to fill the 24 MoE layers of gpt_oss_20b" in done.stdout
    (folder,) = runs(empty_folder)
    assert lines[-1] == f"results in {folder.relative_to(empty_folder)}"
    assert {file.name for file in folder.iterdir()} == FILES
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    told = json.loads((folder / "run.json").read_text())
    assert told["run_id"] == folder.name
    assert told["config"]["topology"]["name"] == "h100_sxm"
    assert {"seed", "version", "versions", "wall_s", "overrides", "notes", "trace_sha256", "physics"} <= told.keys()
    for table in TABLES:
        footer = pl.read_parquet_metadata(folder / f"{table}.parquet")
        assert footer["clustersim.schema"] == f"{table}/{SCHEMA_VERSION}"
        assert json.loads(footer["clustersim.config"]) == told["config"]
    row = tables(folder)["summary"].row(0, named=True)
    assert row["gpus"] == 64
    assert row["slots"] == 64
    assert row["tokens"] == 24_576
    assert row["over_bound"] >= 1
    assert tables(folder)["gpus"].height == 24 * 64


def test_the_same_command_twice_writes_the_same_bytes(empty_folder, capsys):
    command = [*SMALL, "trace=sampled", "capacity.factor=1.0"]
    assert main(command) == 0
    (folder,) = runs(empty_folder)
    first = digests(folder)
    shutil.move(folder, empty_folder / "before")
    assert main(command) == 0
    assert digests(folder) == first
    assert main(command) == 0
    assert digests(folder) == first
    assert runs(empty_folder) == [folder]
    assert {file.name for file in folder.iterdir()} == FILES
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count(f"results in results/runs/{folder.name}") == 3


def test_a_run_says_what_came_of_dropping(capsys):
    assert main([*SMALL, "capacity.factor=0.5"]) == 0
    out = capsys.readouterr().out
    assert "capacity factor 0.5" in " ".join(out.split())
    assert "% of the choices" in out
    assert "open loop" in out


def test_a_sweep_ends_with_one_row_per_job(empty_folder, capsys):
    assert main(["-m", *SMALL, "capacity.factor=1.0,2.0"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["capacity.factor", "step", "exposed", "dropped", "tokens/s", "bottleneck", "to", "best"]
    assert [line.split()[0] for line in lines[1:3]] == ["1.0", "2.0"]
    assert {"1.00"} & {line.split()[-1] for line in lines[1:3]}
    assert lines[3].startswith("exposed: ")
    assert lines[4].split() == ["capacity.factor", "step", "saved", "dropped", "wholly", "gate", "lost", "used"]
    assert [line.split()[0] for line in lines[5:7]] == ["1.0", "2.0"]
    assert lines[7].startswith("saved: against dropless")
    assert lines[8] == "2 runs in results/runs"
    assert err == ""
    assert len(runs(empty_folder)) == 2
    for folder in runs(empty_folder):
        assert {file.name for file in folder.iterdir()} == FILES
        assert "capacity.factor" in tables(folder)["summary"].columns


def test_a_sweep_over_many_keys_is_not_folded_in_a_file(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lists = ["exchange=direct,node_dedup", "placement.replica=nearest", "network=bound,fluid", "capacity.factor=1.0,null"]
    assert main(["-m", *SMALL[:2], "model.n_layers=1", "workers=0", *lists]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["exchange", "network", "capacity.factor"]      # what does not vary is left out
    assert lines[10].split()[:6] == ["exchange", "network", "capacity.factor", "step", "saved", "dropped"]
    assert len(lines) == 2 * (1 + 8 + 1) + 1, "headings, jobs, what they mean; the same for the drops; the folder"


def test_a_job_of_a_sweep_is_the_run_it_says(empty_folder):
    assert main(["-m", *SMALL, "capacity.factor=1.0,2.0"]) == 0
    swept = {folder.name: digests(folder) for folder in runs(empty_folder)}
    shutil.rmtree(empty_folder / "results")
    assert main([*SMALL, "capacity.factor=2.0"]) == 0
    (alone,) = runs(empty_folder)
    assert digests(alone) == swept[alone.name]


def test_a_bad_job_of_a_sweep_is_reported_and_the_others_kept(empty_folder, capsys):
    assert main(["--multirun", *SMALL, "placement.slots=16,32,64"]) == 2
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["32", "64"]
    assert "2 runs in results/runs" in out
    assert err.count("\n") == 1
    assert err.startswith("clustersim: failed: ")
    assert "placement.slots=16: fewer slots than the 32 experts" in err
    states = {folder.name: json.loads((folder / "status.json").read_text()) for folder in runs(empty_folder)}
    assert sorted(status["state"] for status in states.values()) == ["done", "done", "failed"]
    (failed,) = (name for name, status in states.items() if status["state"] == "failed")
    assert states[failed]["reason"] in err
    assert "placement.slots=16" in states[failed]["overrides"]
    assert [file.name for file in (empty_folder / "results" / "runs" / failed).iterdir()] == ["status.json"]


def test_a_sweep_of_bad_jobs_only_says_what_is_wrong_with_each(empty_folder, capsys):
    assert main(["-m", *SMALL, "capacity.factor=0,-1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("clustersim: failed: ") == err.count("\n") == 2


def test_bad_input_that_all_jobs_share_is_said_once(capsys):
    assert main(["-m", *SMALL, "capacity.factor=0", "seed=0,1"]) == 2
    assert capsys.readouterr().err.startswith("clustersim: capacity.factor=0: ")


def test_a_study_sweeps_by_itself(empty_folder, capsys):
    assert main(["+experiment=capacity_factor", *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    jobs = [(pad, factor) for pad in ("false", "true") for factor in ("1.0", "1.25", "1.5", "2.0", "null")]
    assert [tuple(line.split()[:2]) for line in lines[1:11]] == jobs
    assert " ".join(lines[12].split()) == "capacity.pad capacity.factor step saved dropped wholly gate lost used padding"
    assert [tuple(line.split()[:2]) for line in lines[13:23]] == jobs
    assert lines[-1] == "10 runs in results/capacity_factor"
    assert len(runs(empty_folder, "capacity_factor")) == 10


def test_a_key_on_the_command_line_wins_over_the_studys(empty_folder, capsys):
    assert main(["+experiment=capacity_factor", *SMALL, "capacity.factor=1.5,null"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:5]] == ["1.5", "null"] * 2
    assert main(["+experiment=capacity_factor", *SMALL, "capacity.factor=3"]) == 0
    assert len(runs(empty_folder, "capacity_factor")) == 4 + 2


def test_the_study_of_placements_tells_how_even_and_how_near_they_are(empty_folder, capsys):
    assert main(["+experiment=placement", *SMALL, "placement=contiguous,eplb,local_search", "placement.spare=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heading = "placement step MoE layer max/mean balanced gap nodes bottleneck to best"
    assert " ".join(lines[0].split()) == heading
    assert [line.split()[0] for line in lines[1:4]] == ["contiguous", "eplb", "local_search"]


def test_the_study_of_rebalancing_tells_when_a_move_has_paid(empty_folder, capsys):
    keys = ["workload.steps=8", "workload.domain_steps=4", "decide.warmup=2", "decide.window=1", "decide.period=2,4"]
    assert main(["+experiment=rebalance", *SMALL, *keys]) == 0
    lines = capsys.readouterr().out.splitlines()
    heading = "placement.spare decide.period step moved migration gain net pays after bottleneck to best"
    assert " ".join(lines[0].split()) == heading
    assert [tuple(line.split()[:2]) for line in lines[1:5]] == [("0", "2"), ("0", "4"), ("1", "2"), ("1", "4")]


def test_every_study_names_the_command_that_runs_it():
    for path in group_folder("experiment").glob("*.yaml"):
        assert f"# clustersim +experiment={path.stem}\n" in path.read_text()


def test_scan_reads_a_whole_sweep(empty_folder):
    assert main(["-m", *SMALL, "exchange=direct,node_dedup", "seed=1"]) == 0
    ids = {folder.name for folder in runs(empty_folder)}
    summary = clustersim.scan("results").collect()
    assert summary.height == 2
    assert set(summary["run_id"]) == ids
    assert set(summary["exchange"]) == {"direct", "node_dedup"}
    gpus = clustersim.scan("results/runs", "gpus")
    assert isinstance(gpus, pl.LazyFrame)
    assert gpus.collect().height == 2 * 2 * 8
    busy = gpus.group_by("run_id").agg(pl.sum("comm_busy_s")).collect()
    assert set(busy["run_id"]) == ids
    assert (busy["comm_busy_s"] > 0).all()


def test_a_copy_of_the_shipped_trace_gives_the_same_tables(empty_folder, tmp_path):
    shutil.copytree(PACKAGE / "workload" / "data" / "tiny", tmp_path / "copy of mine")
    assert main([*SMALL, "capacity.factor=1.0", "output=shipped"]) == 0
    assert main([*SMALL, "capacity.factor=1.0", "trace=file", f"trace.path={tmp_path / 'copy of mine'}", "output=copied"]) == 0
    (shipped,), (copied,) = (list((empty_folder / name / "runs").iterdir()) for name in ("shipped", "copied"))
    assert shipped.name != copied.name
    one, two = tables(shipped), tables(copied)
    for name in ("layers", "gpus", "links", "experts"):
        assert one[name].equals(two[name])
    said = ["run_id", "trace", "trace.name"]
    assert one["summary"].drop(said).equals(two["summary"].drop([*said, "trace.path", "trace.tokens"]))


def test_help_shows_the_groups_their_options_and_examples(capsys, empty_folder):
    for arguments in (["--help"], ["-h"], ["capacity.factor=2", "--help"]):
        assert main(arguments) == 0
        out = capsys.readouterr().out
        for group in GROUPS:
            (line,) = re.findall(rf"^  {group} (.*(?:\n    .*)*)", out, re.MULTILINE)
            assert line.replace(",", " ").split() == list(options(group_folder(group)))
        examples = out.partition("\nexamples\n")[2].partition("\n\n")[0].splitlines()
        assert len(examples) == 4
        assert all(example.startswith("  clustersim ") for example in examples)
        assert all(len(line) <= 80 for line in out.splitlines())
    assert not list(empty_folder.iterdir())


def test_the_examples_of_the_help_are_understood(capsys):
    from clustersim.config import compose, sweep

    main(["--help"])
    examples = capsys.readouterr().out.partition("\nexamples\n")[2].partition("\n\n")[0].splitlines()
    assert len(examples) == 4
    for example in examples:
        words = example.split()[1:]
        for job in sweep(words[1:]) if words[0] == "-m" else [words]:
            assert compose(job).overrides == tuple(job)


def test_every_command_is_a_file_and_is_in_the_help(capsys):
    main(["--help"])
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert callable(importlib.import_module(f"clustersim.commands.{command}").command)
        assert command == "run" or f"\n  clustersim {command} " in out, "run is what there is without a command"


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "run"])
def test_help_of_a_command_is_of_that_command(command, capsys):
    for arguments in ([command, "--help"], [command, "something", "-h"]):
        assert main(arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        typed = [line.split()[1] for line in lines if line.startswith("  clustersim ")]
        assert typed
        assert set(typed) == {command}
        assert len(lines) < 20


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_played(capsys, monkeypatch, empty_folder):
    monkeypatch.setattr("clustersim.simulation.simulate", lambda *a, **k: pytest.fail("it was played"))
    (empty_folder / "file").touch()
    for output in ("file", "file/below"):
        assert main([*SMALL, f"output={output}"]) == 2
        assert f"output={output}: cannot be written (" in capsys.readouterr().err
    assert [path.name for path in empty_folder.iterdir()] == ["file"]


def test_a_trace_is_not_written_over_what_it_is_made_of(capsys, empty_folder):
    shutil.copytree(PACKAGE / "workload" / "data" / "tiny", empty_folder / "mine")
    before = digests(empty_folder / "mine")
    for target in ("mine", "../here/mine"):
        assert main(["convert", "mine", "--from", "moetrace", "-o", target]) == 2
        assert "holds what is to be converted" in capsys.readouterr().err
    assert main(["convert", "mine/tokens.parquet", "--from", "moetrace", "-o", "mine"]) == 2
    assert digests(empty_folder / "mine") == before


def test_list_shows_every_option_with_a_line(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for group in GROUPS:
        assert f"{group}: " in out
    assert main(["list", "topology"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["topology:", *options(group_folder("topology"))]
    assert {"gb200_nvl72", "h100_sxm", "h800_sxm", "ideal_rail"} < {line.split()[0] for line in lines}
    assert all(len(line.split()) > 3 for line in lines[1:]), "an option says nothing about itself"


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_says_what_it_is(group):
    found = options(group_folder(group))
    assert found
    assert all(found.values())


def test_cfg_shows_the_config_and_runs_nothing(capsys, empty_folder):
    from omegaconf import OmegaConf

    assert main(["--cfg", "capacity.factor=1.5", "topology=h800_sxm"]) == 0
    config = OmegaConf.to_container(OmegaConf.create(capsys.readouterr().out))
    assert config["capacity"]["factor"] == 1.5
    assert config["topology"]["nvlink"]["achievable"] == "160 GB/s"
    assert config["output"] == "results"
    assert "hydra" not in config
    assert main(["--cfg", "job"]) == 0          # as with Hydra's own command line
    assert "capacity:" in capsys.readouterr().out
    assert not list(empty_folder.iterdir())


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{clustersim.__version__}\n"


def test_an_interrupted_run_says_so_in_one_line(monkeypatch, capsys, empty_folder):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("clustersim.playing.play", interrupted)
    assert main(SMALL) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "interrupted; finished runs are kept\n"
    assert not list(empty_folder.iterdir())


def test_an_interrupted_sweep_keeps_what_is_done(monkeypatch, capsys, empty_folder):
    from clustersim import playing

    real, calls = playing.play, []

    def second_is_interrupted(*arguments):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(playing, "play", second_is_interrupted)
    assert main(["-m", *SMALL, "seed=0,1,2"]) == 130
    assert capsys.readouterr().err.count("\n") == 1
    (folder,) = runs(empty_folder)
    assert {file.name for file in folder.iterdir()} == FILES


def test_the_first_run_says_that_it_compiles(monkeypatch, capsys):
    monkeypatch.setattr("clustersim.network.when_compiling", lambda say, network: say())
    assert main(SMALL) == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "compiling the network solver" in err


def test_a_solver_that_is_ready_is_not_announced(monkeypatch):
    """Whether to speak is asked of the solver itself, two seconds on; here the two seconds pass at once."""
    from clustersim.network import coarse_kernel, kernel, sharing, when_compiling

    sharing.run(sharing.empty(np.ones(1)), 0.0)
    assert kernel.run.signatures
    said = []
    when_compiling(lambda: said.append("ready all the same"))
    monkeypatch.setattr("threading.Timer", lambda seconds, look: SimpleNamespace(daemon=False, start=look))
    for solver in (kernel, coarse_kernel):
        monkeypatch.setattr(solver, "run", SimpleNamespace(signatures=[]))
    when_compiling(lambda: said.append("compiling"))
    assert said == ["compiling"]


@pytest.mark.parametrize("arguments", [["list"], ["--help"], ["--cfg"]])
def test_a_reader_who_has_gone_is_no_error(arguments):
    """`clustersim list | head -1`, with the pipe closed already."""
    script = f"import sys; from clustersim.cli import main; sys.exit(main({arguments!r}))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, check=False, env=ENVIRONMENT
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 1
