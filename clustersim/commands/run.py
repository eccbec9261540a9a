"""`clustersim [KEY=VALUE ...]`: one run, its config, or a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clustersim.commands.arguments import with_value
from clustersim.commands.screen import run_progress, stdout_console
from clustersim.types import InputError


def command(arguments: list[str]) -> int:
    own, arguments = with_value("--config-dir", arguments)
    flags = [a for a in arguments if a.startswith("-")]
    overrides = [f"config_dir={own}"] * (own is not None) + [a for a in arguments if not a.startswith("-")]
    if unknown := [a for a in flags if a not in ("-m", "--multirun", "--cfg", "--json")]:
        raise InputError(f"{unknown[0]}: there is no such flag (-m, --cfg, --config-dir DIR, --json; --help says what for)")
    as_json = "--json" in flags
    from clustersim import config

    if "--cfg" in flags:
        _show_config(config.compose([text for text in overrides if text != "job"]).config, as_json)
        return 0
    if {"-m", "--multirun"} & set(flags) or config.is_sweep(overrides):
        from clustersim.commands import sweep

        return sweep.command(overrides, as_json=as_json)
    from clustersim.results import documents, terminal, training_screen
    from clustersim.simulation import simulate
    from clustersim.writing import check_writable

    run = config.compose(overrides)
    check_writable(Path(run.output) / "runs", f"output={run.output}")
    with run_progress() as progress:
        result = simulate(run, progress=progress)
        folder = result.save()
    if as_json:
        print(json.dumps(documents.run_document(result.tables, result.notes, folder), indent=2, allow_nan=False))
        return 0
    console = stdout_console()
    if "stages" in result.tables:
        console.print(training_screen.device_table(result.tables["stages"]))
        console.print(training_screen.summary(result.summary, result.notes, result.tables["memory"]))
    else:
        console.print(terminal.layer_table(result.tables["layers"]))
        console.print(terminal.summary(result.summary, result.notes, result.tables["memory"]))
    console.print(f"results in {folder}", soft_wrap=True)
    return 0


def _show_config(config: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(config, indent=2))
        return
    from omegaconf import OmegaConf

    print(OmegaConf.to_yaml(OmegaConf.create(dict(config))), end="")
