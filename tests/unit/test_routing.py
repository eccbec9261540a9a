"""From a name in a config to choices: what a router is given, what it is refused, and that pieces and order do not matter."""

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

import clustersim as cs
from clustersim.config import compose
from clustersim.model import model_from
from clustersim.types import InputError, Trace
from clustersim.workload import balancing, routing
from clustersim.workload.routing import bias_steps, loop_of, rerouted, router_from
from clustersim.workload.scores import zipf_token_ids
from clustersim.workload.source import from_balanced, from_sampler, from_trace

MODEL = SimpleNamespace(
    name="toy", n_experts=16, top_k=2, n_moe_layers=3, vocab=1000,
    router={"name": "group_limited", "n_groups": 4, "best_groups": 2},
)  # fmt: skip
RUN = ["topology.nodes=2", "topology.gpus_per_node=4", "workload.tokens_per_gpu=32", "model.n_layers=2", "network=bound"]


def near(gpu):
    return np.arange(16) // 4 == gpu


def sampled(extra=0, gpus=4, tokens=48, seed=5, sequence=128, kind="correlated"):
    return from_sampler(MODEL, gpus, tokens, seed, extra, tokens=kind, alpha=2.0, domains=1, sequence=sequence)


def unrelated(extra=0, tokens=48):
    """Tokens that know nothing of each other, so that loads deviate as those of draws do."""
    return sampled(extra, tokens=tokens, kind="independent")


def routed(name, workload=None, seed=5, phase="prefill", **options):
    router = router_from(name, options, MODEL, phase=phase)
    workload = sampled(router.extra) if workload is None else workload
    return rerouted(workload, router, MODEL, seed, name="trace=x", near=near)


def recorded(*, tokens=96, with_scores=False):
    rng = np.random.default_rng(0)
    logged = rng.normal(size=(tokens, 3, 16)).astype(np.float32)
    return Trace(
        expert_ids=np.argsort(-logged, axis=2)[:, :, :2].astype(np.int16), gate_weights=None, step=np.zeros(tokens, int),
        rank=np.zeros(tokens, int), seq=np.arange(tokens) // 8, pos=np.arange(tokens) % 8, phase=np.zeros(tokens, np.uint8),
        n_experts=16, scores=logged if with_scores else None,
    )  # fmt: skip


# ---- scores on demand


def test_scores_do_not_depend_on_the_pieces_they_are_asked_in():
    whole = sampled().scores(2, 0, 600)
    assert whole.dtype == np.float32
    edges = [0, 1, 7, 48, 130, 192, 201, 600]           # in and across sequences and GPUs, and beyond the pass of 192 tokens
    for first, last in pairwise(edges):
        assert (sampled().scores(2, first, last) == whole[first:last]).all()
    assert sampled().scores(2, 9, 9).shape == (0, 16)


def test_a_drawn_workload_agrees_with_its_scores_and_knows_the_words():
    w = sampled()
    chosen = w.choose(1)
    assert (chosen.ids == np.argsort(-chosen.scores(0, 192), axis=1)[:, :2]).all()
    assert (chosen.scores(40, 60) == w.scores(1, 40, 60)).all()
    assert (w.token_ids() == zipf_token_ids(5, 192, 1000)).all()


def test_words_follow_zipfs_law():
    """Word i has probability 1 / (i + 1) / H; 200,000 draws, the ten most frequent within 5 standard errors."""
    words = zipf_token_ids(0, 200_000, 1000)
    p = 1 / np.arange(1, 1001) / (1 / np.arange(1, 1001)).sum()
    counts = np.bincount(words, minlength=1000)[:10]
    assert (np.abs(counts - 200_000 * p[:10]) <= 5 * np.sqrt(200_000 * p[:10] * (1 - p[:10]))).all()
    assert words.max() < 1000


def test_the_scores_of_a_trace_are_those_recorded_and_come_again_beyond_its_end():
    trace = recorded(with_scores=True)
    w = from_trace(trace, MODEL, 3, 32)
    rows = np.arange(96)
    assert (np.sort(w.scores(1, 0, 96), axis=0) == np.sort(trace.scores[rows, 1], axis=0)).all()
    assert (w.scores(0, 90, 200)[6:102] == w.scores(0, 0, 96)).all()
    assert (w.choose(4).scores(3, 5) == w.scores(1, 3, 5)).all(), "layers repeat"
    assert from_trace(recorded(), MODEL, 3, 32).choose(0).scores is None


# ---- choices


def test_recorded_leaves_the_workload_alone():
    w = sampled()
    assert routed("recorded", w) is w


def test_top_k_on_drawn_scores_is_what_was_drawn():
    w = sampled(kind="correlated")
    one, other = w.choose(2), routed("top_k", w).choose(2)
    assert (one.ids == other.ids).all()
    np.testing.assert_allclose(one.weights, other.weights, rtol=1e-6)


def test_top_k_on_a_trace_with_scores_is_what_was_recorded():
    w = from_trace(recorded(with_scores=True), MODEL, 3, 32)
    assert (routed("top_k", w).choose(1).ids == w.choose(1).ids).all()


@pytest.mark.parametrize("name", ["top_k", "random", "expert_choice", "gshard", "mixture_of_depths", "hash_table", "base"])
def test_choices_do_not_depend_on_how_many_gpus_are_worked_on_at_once_nor_on_the_order_of_layers(name, monkeypatch):
    together = routed(name)
    ahead = together.choose(2)
    monkeypatch.setattr(routing, "RUN", 1)
    alone = routed(name)
    for layer in (0, 1, 2):
        alone.choose(layer)
    for column in ("ids", "weights"):
        assert (getattr(ahead, column) == getattr(alone.choose(2), column)).all()


@pytest.mark.parametrize("name", ["top_k", "model"])
def test_tokens_that_are_routed_one_by_one_are_routed_alike_in_runs_of_any_length(name, monkeypatch):
    whole = routed(name).choose(1)
    monkeypatch.setattr(routing, "SHORT_RUN", 7)
    short = routed(name).choose(1)
    assert (whole.ids == short.ids).all()
    assert (whole.weights == short.weights).all()


def test_a_router_sees_the_tokens_of_one_gpu_at_a_time():
    """Expert choice: equal loads from every GPU. GPUs draw for themselves: the same scores, different second experts."""
    w = routed("expert_choice")
    ids = w.choose(0).ids
    for gpu in range(4):
        own = ids[w.source == gpu]
        assert (np.bincount(own[own >= 0], minlength=16) == 48 * 2 // 16).all()
    same = replace(sampled(), scores=lambda layer, first, last: np.tile(np.float32([3, 2, 1, *[0] * 13]), (last - first, 1)))
    second = routed("gshard", same).choose(0).ids[:, 1].reshape(4, -1)
    assert len({tuple(row) for row in second.tolist()}) == 4


def test_a_workload_with_uneven_gpus_is_routed_gpu_by_gpu():
    w = sampled(gpus=3)
    source = np.repeat([0, 2], [16, 128])
    uneven = replace(w, source=source, index=np.append(np.arange(16), np.arange(128)))
    ids = routed("expert_choice", uneven).choose(1).ids
    assert (np.bincount(ids[:16][ids[:16] >= 0], minlength=16) == 2).all()
    assert (np.bincount(ids[16:][ids[16:] >= 0], minlength=16) == 16).all()


def test_the_router_of_the_model_is_the_one_it_names():
    one, other = routed("model").choose(0), routed("group_limited", n_groups=4, best_groups=2).choose(0)
    assert (one.ids == other.ids).all()
    assert (one.weights == other.weights).all()
    for own, said in (
        ({}, "router=model: model nameless names no router"),
        (3, "model.router=3: must be a group of keys"),
        ({"name": "topk"}, "model.router=topk: there is no such router; .*did you mean top_k"),
        ({"name": "top_k", "scal": 3}, "model.router.scal: top_k takes .*did you mean scale"),
    ):
        with pytest.raises(InputError, match=said):
            router_from("model", {}, SimpleNamespace(name="nameless", router=own, top_k=2))


def test_an_experts_number_below_zero_costs_nothing():
    assert (routed("moe_plus_plus", n_zero=4).choose(0).ids < 0).any()
    assert routed("moe_plus_plus", n_zero=4).choose(0).ids.max() < 16


def test_depth_goes_by_the_sequences_of_a_gpus_batch():
    w = routed("mixture_of_depths", sampled(1, sequence=16), capacity=0.25)
    taken = (w.choose(0).ids[:, 0] >= 0).reshape(4, 3, 16)
    assert (taken.sum(axis=2) == 4).all()
    assert (w.choose(1).ids >= 0).all()


def test_far_and_near_are_those_of_the_gpus_node():
    ids = routed("topology_aware", fraction=0.0).choose(0).ids
    for gpu in range(4):
        assert near(gpu)[ids[gpu * 48 : gpu * 48 + 48]].all()


# ---- what cannot be


def test_expert_ids_alone_are_not_routed_anew():
    for w in (from_trace(recorded(), MODEL, 3, 32), from_balanced(MODEL, 3, 32)):
        with pytest.raises(InputError, match=r"^router=top_k: trace=x has expert ids only.* use router=recorded, trace=sampled,"):
            routed("top_k", w)
        for blind in ("random", "round_robin"):
            assert routed(blind, w).choose(0).ids.shape == (96, 2)
        with pytest.raises(InputError, match="router=hash_table: goes by token ids, and trace=x has none"):
            routed("hash_table", w)


def test_a_trace_without_the_extra_columns_is_refused():
    w = from_trace(recorded(with_scores=True), MODEL, 3, 32)
    with pytest.raises(InputError, match="router=longcat: needs scores in 20 columns, 4 of them beside the model's experts"):
        routed("longcat", w, n_zero=4)


@pytest.mark.parametrize("name", ["expert_choice", "soft_moe", "mixture_of_depths"])
def test_a_router_that_ranks_tokens_cannot_decode(name):
    with pytest.raises(InputError, match=rf"^router={name}: ranks the tokens.*workload\.phase=decode"):
        routed(name, phase="decode")


@pytest.mark.parametrize(("name", "k"), [("base", 1), ("sinkhorn", 2), ("swipe", 2)])
def test_a_router_that_is_evaluated_otherwise_decodes_so_and_says_it(name, k):
    w = routed(name, phase="decode")
    assert (w.choose(0).ids == np.argsort(-w.scores(0, 0, 192), axis=1)[:, :k]).all()
    assert any(note.startswith(f"router={name} decodes as it is evaluated") for note in w.notes)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("topk", {}, "router=topk: there is no such router; .*did you mean top_k"),
        ("top_k", {"kk": 2}, "router.kk: top_k takes k, softmax, renormalise, scale"),
        ("top_k", {"k": "many"}, "router.k=many: must be a whole number"),
        ("top_k", {"bias": {"rule": "sign", "updates": 3}}, "router.bias.updates=3: top_k takes no bias"),
        ("group_limited", {"bias": 3}, "router.bias=3: is a group of keys"),
        ("group_limited", {"bias": {"updates": 3}}, "router.bias.updates=3: needs a rule"),
        ("group_limited", {"bias": {"rule": "sgn"}}, "router.bias.rule=sgn: there is no such rule; .*did you mean sign"),
        ("group_limited", {"bias": {"rule": "sign", "rate": 0}}, "router.bias.rate=0: must be a number above 0"),
        ("group_limited", {"bias": {"rule": "sign", "rate": math.inf}}, "router.bias.rate=inf: must be a number above 0"),
        ("group_limited", {"bias": {"rule": "sign", "rate": None}}, "router.bias.rate=None: must be a number"),
        ("longcat", {"n_zero": -1}, "router.n_zero=-1: must be from 1 up"),
        ("group_limited", {"bias": {"rule": "sign", "active": 3}}, "router.bias.active: sign takes rate"),
        ("group_limited", {"bias": {"rule": "sign", "step": 3}}, "router.bias.step: there is no such key"),
        ("group_limited", {"bias": {"rule": "sign", "updates": -1}}, "router.bias.updates=-1: must be a whole number from 0 up"),
        ("group_limited", {"bias": {"rule": "sign", "tokens": 0}}, "router.bias.tokens=0: must be a whole number from 1 up"),
        (
            "quantile_balanced", {"bias": {"rule": "quantile", "updates": 1, "tokens": 100}},
            "router.bias.tokens=100: times top-2 must be a multiple of the 16 experts of toy",
        ),
    ],
)
def test_a_config_that_cannot_be_is_refused_before_anything_is_routed(name, options, said):
    with pytest.raises(InputError, match=said) as caught:
        router_from(name, options, MODEL)
    assert "\n" not in str(caught.value)


# ---- biases


BIASED = {"n_groups": 1, "best_groups": 1, "bias": {"rule": "sign", "rate": 0.02, "updates": 60, "tokens": 1024}}


def test_a_settled_bias_evens_the_load_of_tokens_it_has_not_seen():
    w = unrelated(tokens=1024)
    slow = BIASED | {"bias": BIASED["bias"] | {"rate": 0.004, "updates": 150}}      # of popular experts sigmoids are flat
    free, settled = (routed("group_limited", w, **options).choose(0).ids for options in (BIASED | {"bias": {}}, slow))
    before, after = (balancing.max_violation(np.bincount(ids.ravel(), minlength=16)) for ids in (free, settled))
    assert after < 0.25 < 0.5 < before


def test_a_bias_does_not_depend_on_how_many_gpus_are_routed():
    few, many = (routed("group_limited", sampled(gpus=gpus), **BIASED) for gpus in (2, 5))
    assert (few.choose(1).ids == many.choose(1).ids[: 2 * 48]).all()


def test_the_table_of_a_closed_loop_tells_what_its_steps_did():
    router = router_from("group_limited", BIASED, MODEL)
    process = unrelated().scores
    table = balancing.settle(**loop_of(process, router, MODEL, 0), seconds=lambda ids: float(np.bincount(ids.ravel()).max()))
    assert table.columns == ["step", "max_vio", "load_cv", "least", "most", "bias_low", "bias_high", "step_s"]
    assert len(table) == 61
    for row, (bias, counts, ids) in zip(table.iter_rows(named=True), bias_steps(process, router, MODEL, 0), strict=True):
        assert row["max_vio"] == pytest.approx(counts.max() / counts.mean() - 1)
        assert row["most"] == pytest.approx(row["max_vio"] + 1)
        assert (row["bias_low"], row["bias_high"]) == (bias.min(), bias.max())
        assert row["step_s"] == counts.max()
        assert ids.shape == (1024, 2)
    assert table["bias_high"][0] == 0


@pytest.mark.parametrize(
    ("name", "rule", "options"),
    [
        ("group_limited", "proportional", {"rate": 0.5}),
        ("group_limited", "quantile", {"rate": 0.5}),
        ("quantile_balanced", "quantile", {"rate": 0.5}),
        ("threshold", "order_statistic", {"rate": 0.2}),
    ],
)
def test_every_rule_evens_out_the_loads(name, rule, options):
    bias = {"rule": rule, "updates": 40, "tokens": 1024} | options
    more = {"n_groups": 1, "best_groups": 1} if name == "group_limited" else {}
    router = router_from(name, {"bias": bias} | more, MODEL)
    violation = [balancing.max_violation(counts) for _, counts, _ in bias_steps(unrelated().scores, router, MODEL, 0)]
    assert np.mean(violation[-10:]) < 0.35, "the largest of 16 loads of 128 lies 0.16 above their mean by chance alone"
    if rule != "order_statistic":       # which is there after its first update
        assert violation[0] > 0.5


def test_longcats_real_experts_get_the_share_they_are_due():
    """12 columns beside the 16 experts; of 2 choices 1.2 should be real ones, all experts alike. The share is approached
    slowly, as an update moves it by what is missing of it times the rate and the density of the scores."""
    bias = {"rule": "proportional", "rate": 0.05, "updates": 300, "tokens": 1024, "active": 1.2}
    router = router_from("longcat", {"n_zero": 12, "bias": bias}, MODEL)
    steps = list(bias_steps(unrelated(12).scores, router, MODEL, 0))
    (_, first, before), (moved, last, _) = steps[0], steps[-1]
    after = np.concatenate([ids for _, _, ids in steps[-30:]])          # one pass of 1,024 tokens is 0.02 off by chance
    short = [1.2 - (ids >= 0).sum() / len(ids) for ids in (before, after)]
    assert abs(short[1]) < abs(short[0]) / 2
    assert balancing.max_violation(last) < balancing.max_violation(first) / 3
    assert (moved[16:] == 0).all(), "zero-computation experts keep their bias"


# ---- in a run


def test_the_router_is_a_choice_of_the_run_and_a_column_of_its_results():
    plain = cs.simulate([*RUN, "trace=sampled"])
    again = cs.simulate([*RUN, "trace=sampled", "router=top_k"])
    other = cs.simulate([*RUN, "trace=sampled", "router=round_robin"])
    assert [r.summary["router"] for r in (plain, again, other)] == ["recorded", "top_k", "round_robin"]
    assert again.tables["layers"].equals(plain.tables["layers"])
    assert other.summary["imbalance"] == pytest.approx(1.0)
    assert len({r.run_id for r in (plain, again, other)}) == 3


def test_router_model_runs_every_model_with_its_own_router():
    for name in ("deepseek_v3", "deepseek_v2_lite", "qwen3_235b_a22b"):
        run = compose([f"model={name}", "router=model", "trace=sampled"])
        router = router_from("model", run.options("router")[1], run.model)
        w = rerouted(from_sampler(run.model, 2, 64, 0), router, run.model, 0, name="x", near=near)
        ids = w.choose(0).ids
        assert ids.shape == (128, run.model.top_k)
        if name == "deepseek_v3":
            assert max(len(set(row)) for row in (ids // 32).tolist()) == 4


def test_a_model_may_say_nothing_of_its_router():
    config = dict(compose([]).config["model"])
    del config["router"]
    assert model_from(config).router == {}


def test_a_trace_with_ids_only_says_so_in_a_run():
    with pytest.raises(InputError, match=r"^router=top_k: trace=tiny has expert ids only"):
        cs.simulate([*RUN, "router=top_k"])
    assert cs.simulate([*RUN, "router=random"]).summary["router"] == "random"
