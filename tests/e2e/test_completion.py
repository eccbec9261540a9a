"""Tab completion: what a word may become, by the same files that a run reads, and that shells take it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import clustersim
from clustersim.cli import COMMANDS, main
from clustersim.commands.completion import FLAGS, SCRIPTS, words_for
from clustersim.composition import composed, leaves
from clustersim.places import ADDED, GROUPS, group_folder, options


def keys_of(group, *overrides):
    """Keys that Hydra's composition has, to be set by themselves."""
    every = list(leaves({group: composed(overrides)[group]}))
    ends = [key for key in every if not any(other.startswith(f"{key}.") for other in every)]
    return {f"{key}=" for key in ends if ".sources" not in key}


@pytest.mark.parametrize("group", [group for group in GROUPS if group not in ADDED])
def test_keys_of_a_group_are_those_of_its_default(group):
    assert set(words_for(f"clustersim seed=1 {group}.")) == keys_of(group)


@pytest.mark.parametrize("chosen", ["capacity=tutel", "topology=dragonfly", "exchange=deepep_normal", "model=deepseek_v3"])
def test_keys_of_a_group_are_those_of_what_was_chosen(chosen):
    group = chosen.partition("=")[0]
    assert set(words_for(f"clustersim -m {chosen},other {group}.")) == keys_of(group, chosen)
    assert words_for(f"clustersim {chosen}_ {group}.") == [], "no such option"


@pytest.mark.parametrize("group", GROUPS)
def test_options_of_a_group(group):
    plus = "+" * (group in ADDED)
    names = list(options(group_folder(group)))
    assert words_for(f"clustersim {plus}{group}=") == [f"{plus}{group}={name}" for name in names]
    assert words_for(f"clustersim -m {plus}{group}={names[0]},") == [f"{plus}{group}={names[0]},{name}" for name in names[1:]]


def test_first_words_are_commands_groups_and_single_keys():
    found = words_for("clustersim ")
    assert set(COMMANDS) - {"run"} <= set(found)
    assert {f"{group}=" for group in GROUPS if group not in ADDED} <= set(found)
    single = {key for key, value in composed([]).items() if not isinstance(value, dict)}
    assert {f"{key}=" for key in single} == {word for word in found if word[:-1] in single}
    assert set(found) & set(words_for("clustersim seed=1 ")) == {word for word in found if word not in COMMANDS}
    assert words_for("clustersim cap") == ["capacity=", "capacity.", "capture"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("clustersim +exp", ["+experiment="]), ("clustersim capacity.pad=", ["capacity.pad=true", "capacity.pad=false"]),
        ("clustersim causes=t", ["causes=true"]), ("clustersim seed=", []), ("clustersim export.ti", ["export.timeline="]),
        ("clustersim list net", ["network"]), ("clustersim inspect rail_", ["rail_only"]),
        ("clustersim list network=b", ["network=bound"]), ("clustersim list no=", []),
        ("clustersim capture ", ["tiny", "hf"]),
        ("clustersim report --s", ["--svg"]), ("clustersim -", [*FLAGS["run"]]), ("clustersim completion z", ["zsh"]),
        ("clustersim compare results/a", []), ("clustersim trace.path=/tm", []), ("clustersim report -o ", []),
        ("clustersim no.such.", []), ("clustersim nothing", []),
    ],
)  # fmt: skip
def test_what_a_word_may_become(line, found):
    assert words_for(line) == found


def test_options_of_ones_own(tmp_path):
    (tmp_path / "topology").mkdir()
    (tmp_path / "preset").mkdir()
    (tmp_path / "topology/lab.yaml").write_text("nodes: 1\nnew: {key: 2}\n")
    (tmp_path / "preset/small.yaml").touch()
    for own in (f"--config-dir {tmp_path}", f"--config-dir={tmp_path}"):
        assert words_for(f"clustersim {own} topology=la") == ["topology=lab"]
        assert words_for(f"clustersim {own} topology=lab topology.n") == ["topology.nodes=", "topology.new.key="]
        assert words_for(f"clustersim {own} +pre") == ["+preset="]
        assert words_for(f"clustersim {own} +preset=") == ["+preset=small"]
    assert words_for(f"clustersim --config-dir {tmp_path}/no topology=la") == []


def test_every_command_says_its_flags(capsys):
    """Each flag that is offered is in the help, but for what every program has."""
    assert FLAGS.keys() == set(COMMANDS)
    main(["--help"])
    told = {word.strip("[(),;:]") for word in capsys.readouterr().out.split()}
    assert {flag for flags in FLAGS.values() for flag in flags} - {"--help", "--version"} <= told


@pytest.mark.parametrize("arguments", [[], ["csh"], ["bash", "zsh"]])
def test_a_shell_that_is_not_known(arguments, capsys):
    assert main(["completion", *arguments]) == 2
    assert "takes one of bash, zsh, fish" in capsys.readouterr().err


SHELLS = {      # how each tells what it would complete a line to
    "bash": 'source <(clustersim completion bash); COMP_LINE="{0}"; COMP_POINT=${{#COMP_LINE}}; _clustersim clustersim; '
    "printf '%s\\n' \"${{COMPREPLY[@]}}\"",
    "fish": 'clustersim completion fish | source; complete -C "{0}"',
    "zsh": "compdef() {{ }}; compadd() {{ [[ $1 == -S ]] && shift 2; shift; print -l -- $@ }}; "
    'source <(clustersim completion zsh); words=({0}); CURRENT=$#words; PREFIX=$words[-1]; _clustersim',
}


@pytest.mark.parametrize("shell", SCRIPTS)
def test_shells_take_it(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    program = tmp_path / "clustersim"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m clustersim.cli "$@"\n')
    program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    home = str(Path(clustersim.__file__).parents[1])

    def completed(line):
        done = subprocess.run(
            [shell, "-c", SHELLS[shell].format(line)], capture_output=True, text=True, check=True, timeout=60,
            env={**os.environ, "PATH": path, "PYTHONPATH": home, "HOME": str(tmp_path)},
        )  # fmt: skip
        assert done.stderr == ""
        return done.stdout.split()

    strip = "exchange=" if shell == "bash" else ""          # bash has split the word there
    assert completed("clustersim exchange=direct,no") == ["exchange=direct,node_dedup".removeprefix(strip)]
    assert set(completed("clustersim cap")) == {"capacity=", "capacity.", "capture"}
