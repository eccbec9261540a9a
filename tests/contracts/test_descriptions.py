"""Every key that can be set says what it means, and `clustersim list GROUP=OPTION` shows it."""

import json

import pytest
import yaml

from clustersim.cli import main
from clustersim.descriptions import described
from clustersim.places import GROUPS, option_files

# models say beside a number where it is from, and docs/models.md what it is; setups and experiments set keys of other groups
SAYING = sorted(GROUPS.keys() - {"model", "setup", "experiment"})
OPTIONS = [(group, option) for group in GROUPS for option in option_files(group)]


def leaves(values, prefix):
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=["=".join(pair) for pair in OPTIONS])
def test_the_keys_found_line_by_line_are_those_that_yaml_reads(group, option):
    values = yaml.safe_load(option_files(group)[option].read_text(encoding="utf-8")) or {}
    values = {key: value for key, value in values.items() if key not in ("name", "sources", "defaults", "hydra")}
    assert list(described(group, option)) == list(leaves(values, f"{group}."))


@pytest.mark.parametrize("group", SAYING)
def test_every_key_says_what_it_means(group):
    silent = [
        f"{option}: {name}" for option in option_files(group) for name, key in described(group, option).items()
        if key.value and not key.meaning
    ]  # fmt: skip
    assert not silent


def test_a_key_that_is_set_without_a_word_means_what_the_default_option_says():
    own, default = described("capacity", "switch"), described("capacity", "megatron")
    assert own["capacity.per"] == default["capacity.per"]
    assert own["capacity.factor"].value == "1.25"
    assert own["capacity.factor"].meaning.startswith("counts tokens, not choices")
    drop = default["capacity.drop"].meaning
    assert drop.startswith("who stays where an expert is full: bpr,")
    assert drop.endswith("prob, random, reroute"), "a comment goes on in the next line"


def test_list_shows_the_keys_of_an_option(capsys):
    assert main(["list", "schedule=chunked"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("schedule=chunked: A layer's exchanges in pieces")
    assert [line.split("  ")[1] for line in shown[1:]] == ["schedule.chunks=4", "schedule.shared=after"]
    assert main(["list", "schedule=chunked", "--json"]) == 0
    (content,) = json.loads(capsys.readouterr().out).values()
    assert content["schedule.chunks"] == {"value": "4", "meaning": "pieces of a layer's exchanges"}


def test_a_misspelt_option_is_refused_with_the_nearest(capsys):
    assert main(["list", "schedule=chunkd"]) == 2
    assert "list schedule=chunkd: there is no such schedule; did you mean chunked?" in capsys.readouterr().err


def test_the_keys_of_ones_own_option_are_shown_too(tmp_path, capsys):
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule" / "mine.yaml").write_text("# As I like it\nname: chunked\nchunks: 2    # two\nshared: after\n")
    assert main(["list", "schedule=mine", "--config-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "schedule=mine: As I like it", "  schedule.chunks=2      two",
        "  schedule.shared=after  shared experts: after the combine, or hidden behind the dispatch",
    ]
