"""What is composed in short is what Hydra composes, and Hydra is asked once for each set of group choices."""

import random

import pytest

from clustersim import composition
from clustersim.composition import by_hydra, composed, shown
from clustersim.places import data_folder
from clustersim.types import InputError

CHOICES = {
    "model": ["deepseek_v3", "olmoe_1b_7b"], "topology": ["dragonfly", "ideal_rail", "hand_drawn"], "trace": ["sampled", "file"],
    "router": ["loss_free", "model"], "capacity": ["tutel"], "exchange": ["direct"], "network": ["bound", "packet"],
    "+experiment": ["capacity_factor", "replicas"],
}  # fmt: skip
VALUES = [
    "1", "1.0", "-3", "1e3", "true", "null", "some text", "'1'", "'quoted, text'", "[1,2]", "{a: 1}", "???", "${seed}", "nan", "",
    "50 GB/s", "a/b.yaml", "1_000", "inf", "yes", "${oops}",
]  # fmt: skip


def either(function, overrides):
    try:
        return function(overrides)
    except InputError as error:
        return str(error)


def some_overrides(rng):
    """Group choices and values of keys, of which some cannot be."""
    groups = [f"{group}={rng.choice(names)}" for group, names in CHOICES.items() if rng.random() < 0.25]
    config = either(composed, groups)               # composed once: what is checked builds on the same groups
    keys = [key for key in composition.leaves(config) if "." in key] if isinstance(config, dict) else ["seed"]
    keys += ["seed", "output", "capacity.nothing", "nothing", "topology", "capacity", "topology.nic.new", "seed.x"]
    values = [f"{rng.choice(['', '', '', '+', '++'])}{rng.choice(keys)}={rng.choice(VALUES)}" for _ in range(rng.randrange(4))]
    return rng.sample(groups + values, len(groups + values))


def test_what_is_composed_in_short_is_what_hydra_composes():
    """The errors too."""
    rng = random.Random(0)
    short = 0
    for _ in range(14):
        overrides = some_overrides(rng)
        expected, found = either(by_hydra_checked, overrides), either(composed, overrides)
        for config in (found, expected):
            if isinstance(config, dict):
                config["hydra"].pop("refers")       # of what is set here, too
        assert repr(found) == repr(expected), overrides             # 1, 1.0, True and nan are told apart
        short += isinstance(found, dict) and any("." in text.partition("=")[0] for text in overrides)
    assert short > 2, "too few of these could be composed at all"


def by_hydra_checked(overrides):
    composition.parse(overrides)
    return by_hydra(overrides)


def test_hydra_composes_once_for_each_set_of_group_choices(monkeypatch):
    asked = []
    real = composition.by_hydra
    monkeypatch.setattr(composition, "by_hydra", lambda overrides: asked.append(list(overrides)) or real(overrides))
    composition._base.cache_clear()
    for seed in range(20):
        for network in ("bound", "fluid"):
            config = composed([f"seed={seed}", f"network={network}", f"capacity.factor={1 + seed / 10}", "+exchange.new=3"])
            assert (config["seed"], config["network"]["name"], config["exchange"]["new"]) == (seed, network, 3)
    assert asked == [["network=bound"], ["network=fluid"]]


def test_what_one_caller_does_to_a_config_another_does_not_see():
    composed([])["topology"]["nodes"] = 999
    composed([])["topology"].clear()
    assert composed([])["topology"]["nodes"] == 8


def test_a_file_that_changes_is_read_again(tmp_path, monkeypatch):
    mine = tmp_path / "mine.yaml"
    mine.write_text((data_folder("topologies") / "ideal_rail.yaml").read_text())
    given = [f"topology={mine}", "seed=1"]
    before = composed(given)["topology"]["nodes"]
    mine.write_text(mine.read_text().replace(f"nodes: {before}", f"nodes: {before + 1}"))
    assert composed(given)["topology"]["nodes"] == before + 1


def test_what_refers_to_another_key_changes_with_it(tmp_path):
    mine = tmp_path / "mine.yaml"
    text = (data_folder("topologies") / "ideal_rail.yaml").read_text()
    mine.write_text(text.replace("gpus_per_node: 8", "gpus_per_node: ${seed}", 1))
    given = [f"topology={mine}", "seed=4"]
    assert composed(given)["topology"]["gpus_per_node"] == 4
    assert composed(given) == by_hydra(given)


def test_values_are_shown_as_they_are_written():
    assert [shown(value) for value in (None, True, False, 1, 1.5, "x", 0)] == ["null", "true", "false", "1", "1.5", "x", "0"]


@pytest.mark.parametrize("overrides", [["seed=1,2"], ["capacity.factor=choice(1,2)"]])
def test_lists_are_not_values(overrides):
    from clustersim.config import compose

    with pytest.raises(InputError, match="add -m"):
        compose(overrides)
