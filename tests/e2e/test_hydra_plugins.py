"""The same sweep through Hydra's launchers gives the same tables; Optuna searches. Each where its plug-in is installed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import clustersim as cs
from clustersim.cli import main
from clustersim.sweeps import plugins
from tests.e2e.test_sweeps import contents

HOME = Path(cs.__file__).parents[1]
SMALL = ["topology.nodes=1", "workload.tokens_per_gpu=16", "model.n_layers=2", "network=bound"]
SWEEP = [*SMALL, "capacity.factor=1.0,null", "seed=0,1"]
LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local"],
    "ray": ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(HOME), os.environ.get("PYTHONPATH")])))
    return tmp_path / "here"


def needs(plugin):
    name = f"hydra_plugins.hydra_{plugin}"
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        found = None
    if found is None:
        extra = plugin.split("_")[0].replace("submitit", "slurm")
        pytest.skip(f"the Hydra plug-in {name} is not installed (pip install '.[{extra}]')")


def run_tables(folder):
    """What the runs of a sweep hold, but for what Hydra leaves and the words of the command."""
    found = {name: data for name, data in contents(Path(folder)).items() if not name.startswith(".hydra")}
    for name, data in found.items():
        if name.endswith("run.json"):
            del data["overrides"]
        if "sweep-" in name:            # in the order in which a launcher had them
            found[name] = {job["run_id"] for job in json.loads(data)["jobs"]}
    return found


def swept(*more):
    """A sweep in a fresh interpreter, as from a terminal."""
    done = subprocess.run(
        [sys.executable, "-m", "clustersim.cli", "-m", *more], capture_output=True, text=True, timeout=300, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_gives_the_same_tables(launcher):
    needs(f"{launcher}_launcher")
    assert main(["-m", *SWEEP, "workers=0", "output=ours"]) == 0
    code, out, err = swept(*SWEEP, *LAUNCHERS[launcher], "output=theirs")
    assert code == 0, err
    assert "4 runs in theirs/runs" in out
    assert run_tables("theirs") == run_tables("ours")


@pytest.mark.parametrize("launcher", ["joblib"])
def test_a_job_that_fails_elsewhere_is_listed_here(launcher):
    needs(f"{launcher}_launcher")
    code, out, err = swept(*SMALL, "placement.slots=16,32", *LAUNCHERS[launcher])
    assert code == 2
    assert "1 runs in results/runs" in out
    assert "clustersim: failed: placement.slots=16: placement.slots=16: fewer slots than the 32 experts" in err


@pytest.mark.slow
def test_hydras_own_launcher_and_sweeper_give_the_same_tables(capsys):
    assert main(["-m", *SWEEP, "workers=0", "output=ours"]) == 0
    assert main(["-m", *SWEEP, "hydra/launcher=basic", "output=theirs"]) == 0
    assert run_tables("theirs") == run_tables("ours")
    ours, theirs = (part.splitlines() for part in capsys.readouterr().out.split("4 runs in ours/runs\n"))
    assert theirs[:-1] == ours
    assert main(["-m", *SWEEP, "hydra/launcher=basic", "output=ours"]) == 0


def test_our_launcher_serves_hydras_sweeper_and_takes_a_machine_from_a_file(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text((HOME / "topologies" / "ideal_rail.yaml").read_text())
    command = ["-m", *SMALL, f"topology={tmp_path / 'mine.yaml'}", "seed=0,1", "workers=0"]
    assert main([*command, "hydra/launcher=clustersim"]) == 0
    assert "2 runs in results/runs" in capsys.readouterr().out
    assert main(command) == 0
    assert "2 of them were there already" in capsys.readouterr().out


@pytest.mark.slow
def test_a_study_sweeps_through_hydra_too(capsys):
    assert main(["-m", "+experiment=replicas", *SMALL, "workers=0", "hydra/launcher=clustersim"]) == 0
    assert "4 runs in results/replicas" in capsys.readouterr().out


def test_optuna_finds_the_best_and_avoids_what_cannot_be():
    """Two placements of eight slots and more: 16 slots cannot hold 32 experts, and fewer choices computed take less time."""
    needs("optuna_sweeper")
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=3", "workers=0"]
    code, out, err = swept(*SMALL, *search, "placement.slots=choice(16,32)", "capacity.factor=interval(0.5,2.0)")
    assert code in (0, 2), err
    found = cs.scan("results").collect()
    assert found.height + err.count("clustersim: failed:") == 6
    (file,) = Path("results/.hydra").glob("*/optimization_results.yaml")
    best = OmegaConf.load(file)
    assert best.best_value == found["step_s"].min()
    assert f"{found.height} runs in results/runs" in out
    assert set(found["placement.slots"]) == {32}


# ---- what is said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["-m", "hydra/launcher=dask", "seed=0,1"], "hydra/launcher=dask: there is no such launcher (installed: basic"),
        (["-m", "hydra/sweeper=ax", "seed=0,1"], "hydra/sweeper=ax: there is no such sweeper"),
        (["-m", "hydra/launcher=basic", "shard=1/2", "seed=0,1"], "shard=1/2: goes with our own launcher alone"),
        (["-m", "hydra/launcher=basic", "sed=0,1"], "sed: there is no such key"),
        (["-m", "hydra/launcher=basic", "model=mixtral,olmoe_1b_7b"], "did you mean mixtral_8x22b or mixtral_8x7b?"),
        (["-m", "hydra.launcher.nothing=1", "seed=0,1"], "hydra.launcher.nothing=1: "),
        (["hydra/launcher=joblib"], "hydra/launcher=joblib: this setting of Hydra's has no effect here"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(overrides, said, capsys):
    assert main(overrides) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert not Path("results/runs").exists()


def test_a_plug_in_that_is_not_installed_is_named_with_its_extra(monkeypatch, capsys):
    monkeypatch.setitem(plugins.EXTRAS["launcher"], "elsewhere", "slurm")
    assert main(["-m", "hydra/launcher=elsewhere", "seed=0,1"]) == 2
    assert capsys.readouterr().err == (
        "clustersim: hydra/launcher=elsewhere: this plug-in is not installed; pip install 'clustersim[slurm]'\n"
    )


def test_every_plug_in_has_an_extra_and_a_page():
    import tomllib

    extras = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in {extra for group in plugins.EXTRAS.values() for extra in group.values()}:
        assert extra in extras
        page = (HOME / "docs" / "sweeps" / f"{extra}.md").read_text()
        assert f"pip install 'clustersim[{extra}]'" in page
