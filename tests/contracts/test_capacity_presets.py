"""One contract for every capacity preset, every policy and every formula on offer, whoever wrote it."""

import re

import numpy as np
import pytest
import yaml

import clustersim as cs
from clustersim import exchange
from clustersim.types import Choices, InputError
from clustersim.workload import capacity_policies, capacity_sizes
from clustersim.workload.capacity import limit, rule_from
from tests.contests import PRESETS, contest, rule

SMALL = ["topology.nodes=1", "topology.gpus_per_node=4", "workload.tokens_per_gpu=48", "model.n_layers=1", "exchange=direct",
         "network=bound", "trace=sampled"]  # fmt: skip
KEYS = list(yaml.safe_load(PRESETS[0].parent.joinpath("megatron.yaml").read_text()))


def choices(tokens=400, n_experts=16, top_k=3, seed=0):
    rng = np.random.default_rng(seed)
    scores = (rng.gumbel(size=(tokens, n_experts)) + rng.normal(size=n_experts)).astype(np.float32)
    ids = (-scores).argsort(axis=1)[:, :top_k]
    ids[rng.random(ids.shape) < 0.1] = -1
    return Choices(ids=ids, weights=rng.random(ids.shape), scores=lambda first, last: scores[first:last])


def limited(what, one, n_gpus=4, n_experts=16):
    tokens = len(one.ids)
    source = np.arange(tokens) * n_gpus // tokens
    index = np.arange(tokens) - np.searchsorted(source, source)
    return limit(
        np.random.default_rng(7), what, one, source=source, index=index, n_gpus=n_gpus, n_experts=n_experts,
        top_k=one.ids.shape[1],
        gpu_of_choice=np.where(one.ids < 0, -1, one.ids * n_gpus // n_experts),
    )


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_says_what_it_is_where_it_comes_from_and_has_every_key(path):
    text, keys = path.read_text(), yaml.safe_load(path.read_text())
    assert re.match(r"# As .{20,110}\n", text)
    assert re.search(r"^# Source: (arXiv \d{4}\.\d{5}|.*\S+/\S+\.py)", text, re.MULTILINE)
    assert set(KEYS) <= set(keys), "a key that another preset has could not be overridden"
    assert rule_from(keys).factor == keys["factor"]


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_every_preset_limits_choices_and_keeps_the_contract(path, top_k):
    what, one = rule(path.stem, factor=yaml.safe_load(path.read_text())["factor"] or 1.0), choices(top_k=top_k)
    before = one.ids.copy()
    done = limited(what, one)
    assert (one.ids == before).all(), "the input is left alone"
    assert (limited(what, one).assigned == done.assigned).all(), "not the same twice"
    assert done.assigned.dtype == done.room.dtype == np.int64
    assert ((done.assigned == one.ids) | (done.assigned == -1)).all()
    assert done.room.shape == (1 if done.gpu_of_pool is None else done.gpu_of_pool.size, 4 if what.per == "gpu" else 16)
    assert (done.room >= 0).all()
    every = limited(rule(path.stem, factor=1000.0), one)
    assert (every.assigned == one.ids).all(), "room for all drops nobody"


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_runs_and_its_numbers_agree(path):
    result = cs.simulate([*SMALL, f"capacity={path.stem}"])
    s, layers, experts = result.summary, result.tables["layers"], result.tables["experts"]
    tokens = 4 * 48
    assert s["capacity_rule"] == yaml.safe_load(path.read_text())["rule"]
    assert s["drop_rate"] == pytest.approx(experts["dropped"].sum() / experts["asked"].sum())
    assert (experts["asked"] - experts["dropped"] - experts["rerouted_away"] + experts["rerouted_here"] == experts["kept"]).all()
    assert s["fully_dropped"] == pytest.approx(layers["fully_dropped_tokens"].sum() / tokens)
    assert s["partly_dropped"] == pytest.approx(layers["partly_dropped_tokens"].sum() / tokens)
    assert s["padding_computed_rows"] == layers["padding_computed_rows"].sum() == experts["padding_rows"].sum()
    assert s["padding_sent_bytes"] == layers["padding_sent_bytes"].sum()
    assert 0 <= s["gate_mass_lost"] <= s["gate_mass_dropped"] <= 1
    assert (s["gate_mass_dropped"] > 0) == (s["drop_rate"] > 0)
    assert s["capacity_used"] == layers["capacity_used"].item()
    if rule(path.stem).pad:
        assert s["padding_share"] == pytest.approx(1 - s["capacity_used"])
    with pytest.raises(InputError, match=r"capacity\.pad=true: exchange=node_dedup cannot send padding; use exchange=direct"):
        cs.simulate([*SMALL, f"capacity={path.stem}", "capacity.pad=true", "capacity.scope=source", "capacity.per=expert",
                     "capacity.where=source", "exchange=node_dedup"])  # fmt: skip


@pytest.mark.parametrize("name", capacity_policies.__all__)
def test_every_policy_can_be_named_in_every_preset(name):
    for path in PRESETS:
        keys = yaml.safe_load(path.read_text())
        if name in capacity_policies.ELSEWHERE and (keys["per"], keys["where"]) != ("expert", "source"):
            continue
        done = limited(rule(path.stem, factor=keys["factor"] or 1.0, drop=name), choices(top_k=1))
        assert (done.assigned >= 0).any()


@pytest.mark.parametrize("name", capacity_policies.__all__)
def test_every_policy_keeps_the_policy_contract(name):
    """No places, no tokens and no choices are no errors; one place per queue is given to one."""
    policy = getattr(capacity_policies, name)
    for tokens, missing in ((0, False), (30, True), (30, False)):
        one = choices(tokens)
        ids = np.full_like(one.ids, -1) if missing else one.ids
        for room in (0, 1):
            competing = contest(ids, room, weights=one.weights, n_experts=16, scores=one.scores(0, tokens))
            kept = policy(np.random.default_rng(0), competing)
            assert kept.shape == ids.shape
            assert kept.dtype == np.int64
            held = np.bincount(kept[kept >= 0], minlength=16)
            assert (held <= room).all()
            assert (held >= np.minimum(np.bincount(ids[ids >= 0], minlength=16), room)).all()


@pytest.mark.parametrize("name", capacity_sizes.__all__)
def test_every_formula_keeps_the_size_contract(name):
    size = getattr(capacity_sizes, name)
    tokens = np.array([384, 17, 384])
    places = size(tokens, 2, 16, 1.25, 99)
    assert places.dtype == np.int64
    assert places.shape in ((3,), (3, 16))
    assert (places[0] == places[2]).all()
    assert (places >= 0).all()


def test_a_policy_or_a_formula_of_ones_own():
    base = [*SMALL, "capacity.factor=1.0"]
    ours = cs.simulate([*base, "capacity.drop=tests.contracts.test_capacity_presets:nobody"]).summary
    assert ours["drop_rate"] == ours["gate_mass_lost"] == ours["fully_dropped"] == 1
    roomy = cs.simulate([*base, "capacity.rule=tests.contracts.test_capacity_presets:one_for_each"]).tables["layers"]
    assert roomy["capacity_used"].item() <= 1
    assert roomy["dropped"].item() >= 48 * 4 * 4 - 32 * 4


def nobody(rng, contest):
    return np.full_like(contest.asked, -1)


def one_for_each(tokens, top_k, n_units, factor, largest):
    return np.ones_like(tokens)


def test_exchanges_that_send_padding_are_among_those_on_offer():
    assert set(exchange.__all__) > exchange.PADDING
