"""One contract for every router on offer and for every file of the config group, whoever wrote it."""

from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from clustersim.places import group_folder, options
from clustersim.types import InputError
from clustersim.workload import routers
from clustersim.workload.routing import ONE_BY_ONE, router_from

FILES = sorted(group_folder("router").glob("*.yaml"))
MADE = [path for path in FILES if path.stem not in ("recorded", "model")]
MODEL = SimpleNamespace(name="toy", n_experts=32, top_k=4, router={})
TOKENS = 96
EQUAL_LOADS = {"base", "expert_choice", "round_robin", "soft_moe", "swipe"}        # by construction, batch by batch
SUM_TO_ONE = {"gshard", "hash", "noisy_top_k", "quantile", "random", "round_robin", "sqrtsoftplus", "swipe", "top_k", "loss_free"}


def config(path):
    return yaml.safe_load(path.read_text())


def made(path, model=MODEL):
    chosen = config(path)
    return router_from(chosen.pop("name"), chosen, model)


def scores_for(router, seed=1, tokens=TOKENS, dtype=np.float32):
    """Uneven popularity, as many columns as the router needs."""
    rng = np.random.default_rng(seed)
    shape = (tokens, MODEL.n_experts + router.extra)
    return (rng.gumbel(size=shape) + 0.7 * rng.normal(size=shape[1])).astype(dtype)


def given(router, tokens=TOKENS, seed=7):
    """What the router asks for beside the scores."""
    everything = {
        "rng": np.random.default_rng(seed), "bias": None, "token_ids": np.arange(tokens) * 13, "layer": 0,
        "sequence": np.arange(tokens) // 32, "near": np.arange(MODEL.n_experts) % 4 == 1,
    }
    return {key: everything[key] for key in router.wants}


def chosen(router, scores, seed=7):
    return router.function(scores, **given(router, len(scores), seed))


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_router_keeps_the_router_contract(path, dtype):
    router = made(path)
    scores = scores_for(router, dtype=dtype)
    before = scores.copy()
    ids, weights = chosen(router, scores)
    assert (scores == before).all(), "the scores are left alone"
    assert ids.dtype == np.int64
    assert weights.dtype == np.float64
    assert ids.shape == weights.shape
    assert len(ids) == TOKENS
    assert ids.min() >= -1
    assert ids.max() < MODEL.n_experts, "a zero-computation expert is -1"
    distinct = np.where(ids < 0, -1 - np.arange(ids.shape[1]), ids)
    assert all(len(set(row)) == len(row) for row in distinct.tolist()), "a token may not pick an expert twice"
    assert (weights[ids < 0] == 0).all()
    assert (weights >= 0).all()
    assert np.isfinite(weights).all()
    for one, other in zip((ids, weights), chosen(router, scores), strict=True):
        assert (one == other).all(), "not the same twice"


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.stem)
def test_single_and_double_precision_choose_alike(path):
    """The same scores, exactly representable in both; a router that draws draws the same."""
    router = made(path)
    single = scores_for(router)
    if router.name in ("noisy_top_k", "switch", "gshard"):
        pytest.skip("draws in the precision of the scores")
    ids, _ = chosen(router, single)
    other, _ = chosen(router, single.astype(np.float64))
    assert ids.shape == other.shape
    assert np.mean(ids == other) > 0.99, "sigmoid and softmax round differently, now and then"


@pytest.mark.parametrize("path", [p for p in MADE if p.stem in EQUAL_LOADS], ids=lambda path: path.stem)
def test_routers_that_promise_equal_loads_keep_it(path):
    ids, _ = chosen(made(path), scores_for(made(path)))
    assert set(np.bincount(ids[ids >= 0], minlength=MODEL.n_experts).tolist()) == {(ids >= 0).sum() // MODEL.n_experts}


@pytest.mark.parametrize("path", [p for p in MADE if p.stem in SUM_TO_ONE], ids=lambda path: path.stem)
def test_normalised_weights_sum_to_one(path):
    ids, weights = chosen(made(path), scores_for(made(path)))
    if path.stem == "gshard":           # g1 stays g1 where the second is left out
        weights = weights[(ids >= 0).all(axis=1)]
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-9)


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.stem)
@pytest.mark.parametrize("tokens", [0, 1])
def test_every_router_takes_few_tokens_or_says_why_not(path, tokens):
    router = made(path)
    if router.name == "soft_moe" or (tokens and router.name in ("base", "quantile_balanced")):
        with pytest.raises(InputError, match=r"workload\.tokens_per_gpu"):
            chosen(router, scores_for(router, tokens=tokens))
        return
    ids, weights = chosen(router, scores_for(router, tokens=tokens))
    assert ids.shape == weights.shape
    assert len(ids) == tokens


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.stem)
def test_a_score_that_is_no_number_is_refused_by_all_that_look(path):
    router = made(path)
    scores = scores_for(router)
    scores[17, 5] = np.nan
    if router.name in ("hash_table", "random", "round_robin", "soft_moe"):
        chosen(router, scores)
        return
    with pytest.raises(InputError, match=r"^router scores: token 17, expert 5 is NaN"):
        chosen(router, scores)


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.stem)
def test_one_token_alone_goes_where_it_goes_in_a_batch_or_the_router_is_named_as_one_that_ranks(path):
    """Decoding takes tokens as they come; `ONE_BY_ONE` lists the routers that cannot."""
    router = made(path)
    if {"rng"} & router.wants or router.name in ("round_robin", "hash_table"):
        pytest.skip("draws, or goes by place or word")
    if router.bias["updates"]:          # what such a router learns from earlier tokens
        router = made(path)
        function = router.function
        bias = np.random.default_rng(2).normal(size=MODEL.n_experts + router.extra) * 0.1
    else:
        function, bias = router.function, None
    scores = scores_for(router)

    def ids(part):
        extra = given(router, len(part))
        if "bias" in router.wants:
            extra["bias"] = bias
        try:
            return [sorted(row[row >= 0].tolist()) for row in function(part, **extra)[0]]
        except InputError:
            return None

    alone = [ids(scores[t : t + 1]) for t in range(24)]
    depends = any(one is None or one[0] != row for one, row in zip(alone, ids(scores)[:24], strict=True))
    ranks = router.name in {*ONE_BY_ONE, "remoe", "topology_aware"}
    assert depends == ranks


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_says_what_it_is_and_names_a_router(path):
    assert 20 < len(options(group_folder("router"))[path.stem]) <= 120
    assert config(path)["name"] in {*routers.__all__, "recorded", "model"}


def test_every_router_has_a_file():
    assert {config(path)["name"] for path in MADE} == set(routers.__all__)


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.stem)
def test_a_file_names_every_option_of_its_router(path):
    router = made(path)
    supplied = {"rng", "bias", "token_ids", "sequence", "layer", "near"}
    assert router.wants <= supplied, "an option without a value in the file"
    assert ("bias" in config(path)) == ("bias" in router.wants) or path.stem == "deepseek_v2"
