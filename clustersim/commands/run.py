"""`clustersim [KEY=VALUE ...]`: one run, its config, or a sweep."""

from __future__ import annotations

from clustersim.commands.screen import run_progress, stdout_console
from clustersim.types import InputError


def command(arguments: list[str]) -> int:
    flags = [a for a in arguments if a.startswith("-")]
    overrides = [a for a in arguments if not a.startswith("-")]
    if unknown := [a for a in flags if a not in ("-m", "--multirun", "--cfg")]:
        raise InputError(f"{unknown[0]}: there is no such flag (-m sweeps, --cfg shows the config, --help explains)")
    from clustersim import config

    if "--cfg" in flags:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(OmegaConf.create(dict(config.compose([o for o in overrides if o != "job"]).config))), end="")
        return 0
    if {"-m", "--multirun"} & set(flags) or config.is_sweep(overrides):
        from clustersim.commands import sweep

        return sweep.command(overrides)
    from clustersim.results import terminal
    from clustersim.simulation import simulate

    with run_progress() as progress:
        result = simulate(overrides, progress=progress)
        folder = result.save()
    console = stdout_console()
    console.print(terminal.layer_table(result.tables["layers"]))
    console.print(terminal.summary(result.summary, result.notes))
    console.print(f"results in {folder}", soft_wrap=True)
    return 0
