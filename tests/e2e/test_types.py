"""Every key of every option says in one line when its value is of a wrong type, and what a misspelt key was meant to be."""

import random

import pytest

from clustersim.composition import composed, leaves
from clustersim.config import compose
from clustersim.places import ADDED, GROUPS, option_files
from clustersim.simulation import simulate
from clustersim.types import InputError
from clustersim.workload.data import __path__ as data

TINY = str(next(iter(data))) + "/tiny"
NEEDED = {"trace=file": [f"trace.path={TINY}"], "decide=load_file": [f"decide.path={TINY}"]}
CHOSEN = [f"{group}={option}" for group in GROUPS if group not in ADDED for option in option_files(group)]


def keys_of(chosen):
    """The keys of an option that take a single value, and that value."""
    group = chosen.partition("=")[0]
    config = composed([chosen, *NEEDED.get(chosen, ())])

    def at(key):
        value = config
        for part in key.split("."):
            value = value[part]
        return value

    asked = {text.partition("=")[0] for text in NEEDED.get(chosen, ())}
    return {key: at(key) for key in leaves({group: config[group]}) if ".sources" not in key and "." in key and key not in asked}


def misread(value):
    """Values that cannot be meant where the file has this one."""
    if isinstance(value, bool):
        return ["nonsense", "7", "null"]
    if isinstance(value, int | float):
        return ["nonsense", "true", "[1,x]"]
    return ["7.5", "true", "[1,x]", "{a: 1}"] if isinstance(value, str) else []


def refused(overrides):
    """What is said of overrides that cannot be: when they are read, or at the latest when the run begins."""
    with pytest.raises(InputError) as caught:
        simulate(compose(overrides))
    return str(caught.value)


def check(chosen, key, wrong):
    said = refused([chosen, *NEEDED.get(chosen, ()), f"{key}={wrong}"])
    assert key in said, said
    assert "\n" not in said


def some_now(chosen):
    """The first option of each group; the others when there is time."""
    first = {one.partition("=")[0]: one for one in reversed(chosen)}
    return [one if one in first.values() else pytest.param(one, marks=pytest.mark.slow) for one in chosen]


GENERAL = [chosen for chosen in CHOSEN if chosen.partition("=")[0] not in ("topology", "model")]


@pytest.mark.parametrize("chosen", some_now(GENERAL))
def test_a_value_is_of_the_type_that_the_file_has(chosen):
    """Told before anything else of the run is looked at, but for values that are another key's: those by who reads them."""
    for key, value in keys_of(chosen).items():
        for wrong in misread(value):
            with pytest.raises(InputError, match=f"{key}|composing|{chosen.partition('=')[0]}"):
                simulate(compose([chosen, *NEEDED.get(chosen, ()), f"{key}={wrong}"]))


@pytest.mark.parametrize("group", ["topology", "model"])
def test_machines_and_models_have_readers_that_say_which_key_is_wrong(group):
    rng = random.Random(0)
    chosen = [f"{group}={option}" for option in option_files(group)]
    for _ in range(8):
        one = rng.choice(chosen)
        keys = {key: value for key, value in keys_of(one).items() if misread(value)}
        key = rng.choice(sorted(keys))
        if key in FREE:
            continue
        said = refused([one, f"{key}={rng.choice(misread(keys[key]))}"])
        assert key.rpartition(".")[2] in said
        assert "\n" not in said


FREE = ("topology.gpu.name",)       # any text will do, and any number is one


@pytest.mark.parametrize("chosen", some_now(CHOSEN))
def test_a_misspelt_key_is_told_what_it_was_meant_to_be(chosen):
    keys = [key for key in keys_of(chosen) if len(key.rpartition(".")[2]) > 3]
    for key in keys[:3]:
        said = refused([chosen, *NEEDED.get(chosen, ()), f"{key[:-1]}={1}"])
        assert said.startswith(f"{key[:-1]}: "), said
        assert key in said
