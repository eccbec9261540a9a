"""Sweeps through Hydra's plug-ins: launchers that run jobs elsewhere, sweepers that choose them. Prints nothing.

A plug-in hands every job to `task` in some process; what that writes is read back from the folders of results. Which jobs
there were is read from what Hydra keeps of each, so it does not matter who chose them or where they ran.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clustersim.composition import composed, own_files, own_folder, parse, register, with_own_files
from clustersim.config import judged
from clustersim.sweeps import pool
from clustersim.sweeps.job import Outcome, run_judged, seen
from clustersim.sweeps.run import Swept, listing
from clustersim.types import InputError
from clustersim.writing import replacing

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn

EXTRAS = {              # option of Hydra's group -> what to install for it
    "launcher": {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"},
    "sweeper": {"optuna": "optuna"},
}  # fmt: skip
QUIET = {"hydra/job_logging": "none", "hydra/hydra_logging": "none"}


def is_hydras(override: str) -> bool:
    """Whether an override is of Hydra's own settings: `hydra/launcher=joblib`, `hydra.sweeper.n_trials=20`."""
    return override.lstrip("+").startswith(("hydra/", "hydra."))


def run_by_hydra(overrides: Sequence[str]) -> Swept:
    """A sweep by the launcher and sweeper that the overrides name; left out, they are our launcher and Hydra's own sweeper.

    Raises:
        InputError: something in the overrides is wrong, a plug-in is not installed or gave up.
    """
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    theirs = [text for text in overrides if is_hydras(text)]
    ours = [text for text in overrides if not is_hydras(text)]
    said = composed([_first(override) for override in parse(ours)])        # what is wrong is said in our words
    if said["shard"] is not None:
        raise InputError(f"shard={said['shard']}: goes with our own launcher alone; leave {theirs[0]} out")
    named = {text.lstrip("+").partition("=")[0]: text.partition("=")[2] for text in theirs}
    _check_installed(named)
    folder = Path(str(said["output"])) / ".hydra" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{time.monotonic_ns() % 1_000_000:06d}"
    settings = {**QUIET, "hydra/launcher": "clustersim", "hydra.sweep.dir": str(folder), "hydra.sweep.subdir": "${hydra.job.num}"}
    settings = {key: value for key, value in settings.items() if key not in named}
    register(own_folder(parse(ours)))
    callers, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    gave_up = None
    try:
        with initialize_config_module("clustersim.conf", version_base="1.3", job_name="clustersim"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            hydra.multirun(
                "config", task, [*with_own_files(ours), *theirs, *(f"{key}={value}" for key, value in settings.items())],
                with_log_configuration=False,
            )  # fmt: skip
    except (HydraException, OmegaConfBaseException) as error:
        gave_up = error
    finally:
        GlobalHydra.instance().hydra = callers
    swept = _what_became(folder)
    asked = [text for text in overrides if not text.lstrip("+").startswith(("hydra/launcher", "hydra.launcher"))]
    with listing(asked, swept.jobs) as note:            # the same sweep, whoever launches its jobs
        for number, outcome in enumerate(swept.outcomes):
            note(number, outcome)
    if gave_up is not None and not swept.jobs:
        raise InputError(f"{' '.join(theirs)}: {' '.join(str(gave_up).split())}") from gave_up
    return swept


def _first(override: Any) -> str:
    """An override with the first of its values."""
    if not override.is_sweep_override():
        return str(override.input_line)
    value = override.value().start if override.is_interval_sweep() else next(override.sweep_string_iterator())
    return f"{override.get_key_element()}={value}"


def _check_installed(named: Mapping[str, str]) -> None:
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()                  # looks for plug-ins, which put their options into the store
    for group, extras in EXTRAS.items():
        name = named.get(f"hydra/{group}")
        offered = [option.removesuffix(".yaml") for option in ConfigStore.instance().list(f"hydra/{group}")]
        if name is None or name in offered:
            continue
        if name in extras:
            raise InputError(f"hydra/{group}={name}: this plug-in is not installed; pip install 'clustersim[{extras[name]}]'")
        raise InputError(f"hydra/{group}={name}: there is no such {group} (installed: {', '.join(sorted(offered))})")


def task(config: Any) -> float:
    """What a plug-in runs as one job; the seconds of a step, for a sweeper to minimise: infinite where the job failed.

    It raises nothing: Hydra would print one traceback and keep the other failures to itself.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    hydra = HydraConfig.get()
    overrides = [str(text) for text in hydra.overrides.task]
    values: Any = OmegaConf.to_container(config, resolve=True)
    choices = dict(hydra.runtime.choices)
    return _step_s(run_judged(lambda: judged(values, overrides, choices), overrides))


def launch(jobs: Sequence[Sequence[str]], first: int, *, folder: str, workers: int | None) -> list[JobReturn]:
    """Our own launcher for a sweeper of a plug-in: the jobs over processes of this machine."""
    from hydra.core.utils import JobReturn, JobStatus

    returns = [JobReturn(overrides=list(job), status=JobStatus.COMPLETED) for job in jobs]
    real = [[_real_file(text) for text in job] for job in jobs]
    for number, job in enumerate(real):
        _keep(Path(folder) / str(first + number) / ".hydra" / "overrides.yaml", job)

    def ended(number: int, outcome: Outcome) -> bool:
        returns[number].return_value = _step_s(outcome)
        return True

    many = pool.cores() if workers is None else workers
    nothing: Callable[[int, float, str], None] = lambda number, fraction, what: None  # noqa: E731
    if many == 0:
        pool.run_here(real, ended, nothing)
    else:
        pool.run_pool(real, min(many, len(real)), ended, nothing)
    return returns


def _real_file(text: str) -> str:
    """`topology=mine` as `topology=my/mine.yaml`, where that file was given."""
    return f"{text.partition('=')[0]}={own_files[text]}" if text in own_files else text


def _step_s(outcome: Outcome) -> float:
    if outcome.state == "failed" or outcome.folder is None:
        return math.inf
    import polars as pl

    return float(pl.read_parquet(outcome.folder / "summary.parquet", columns=["step_s"], glob=False).item())


def _keep(file: Path, overrides: Sequence[str]) -> None:
    """Keep the overrides of a job as Hydra does."""
    from omegaconf import OmegaConf

    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(list(overrides))), encoding="utf-8")


def _what_became(folder: Path) -> Swept:
    """The jobs that Hydra has kept in its folder, by number, and what their results say."""
    from omegaconf import OmegaConf

    files = sorted(folder.glob("*/.hydra/overrides.yaml"), key=lambda file: int(file.parts[-3]))
    jobs = [[_real_file(str(text)) for text in OmegaConf.load(file)] for file in files]
    return Swept(jobs=jobs, outcomes=[seen(job) for job in jobs], left=0)
