"""What a router is asked that makes no sense, ties, and what each promises beyond the contract."""

import math

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from clustersim.types import InputError
from clustersim.workload import routers
from clustersim.workload.routers.activation import activated, best, falling
from clustersim.workload.routers.assignment import assigned_by_auction, assigned_exactly
from clustersim.workload.routers.fixed import balanced_table
from clustersim.workload.routers.token_choice import _by_scores, _Limit

SCORES = np.random.default_rng(0).normal(size=(24, 8)).astype(np.float32)
RNG = np.random.default_rng(1)
ONE = np.zeros(24, int)
NEAR = np.arange(8) < 4


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("top_k", {"k": 9}, "router.k=9: must be a whole number from 1 to 8"),
        ("top_k", {"k": 0}, "router.k=0"),
        ("top_k", {"k": True}, "router.k=True"),
        ("top_k", {"k": 2, "softmax": "middle"}, "router.softmax=middle: must be after"),
        ("group_limited", {"k": 9}, "router.k=9: must be a whole number from 1 to 8"),
        ("group_limited", {"k": 2, "n_groups": 3}, "router.n_groups=3: must divide the 8 experts"),
        ("group_limited", {"k": 2, "n_groups": 0}, "router.n_groups=0: must divide the 8 experts"),
        ("group_limited", {"k": 2, "n_groups": 4, "best_groups": 5}, "router.best_groups=5: must be from 1 to n_groups=4"),
        ("group_limited", {"k": 3, "n_groups": 4, "best_groups": 1}, "these groups hold 2 experts, fewer than k=3"),
        ("group_limited", {"k": 2, "n_groups": 4, "best_groups": 2, "group_score": "top3"}, "=top3: .*did you mean top2"),
        ("group_limited", {"k": 2, "score": "sigmod"}, "router.score=sigmod: .*did you mean sigmoid"),
        ("switch", {"jitter": 1.0, "rng": RNG}, "router.jitter=1.0: must be from 0 to below 1"),
        ("gshard", {"second": "never", "rng": RNG}, "router.second=never: must be one of"),
        ("gshard", {"threshold": 0.0, "rng": RNG}, "router.threshold=0.0: must be above 0"),
        ("noisy_top_k", {"k": 2, "noise": -1.0, "rng": RNG}, "router.noise=-1.0: must be 0 or above"),
        ("top_p", {"p": 0.0}, "router.p=0.0: must be above 0 and at most 1"),
        ("top_p", {"p": 0.5, "most": 9}, "router.most=9: must be from 1 to 8"),
        ("remoe", {"k": 9}, "router.k=9"),
        ("threshold", {"k": 9}, "router.k=9"),
        ("quantile_balanced", {"k": 3, "bias": None}, None),
        ("expert_choice", {"k": 2, "factor": 0.0}, "router.factor=0.0: must be a number above 0"),
        ("sinkhorn", {"k": 2, "tolerance": 0.0}, "router.tolerance=0.0: must be above 0"),
        ("soft_moe", {"slots": 4}, "router.slots=4: must be from 1 to 3 for each of 8 experts, as the 24 tokens"),
        ("mixture_of_depths", {"k": 8, "sequence": ONE, "layer": 0}, "router.k=8: must be a whole number from 1 to 7"),
        ("mixture_of_depths", {"k": 2, "capacity": 0.0, "sequence": ONE, "layer": 0}, "router.capacity=0.0"),
        ("mixture_of_depths", {"k": 2, "every": 0, "sequence": ONE, "layer": 0}, "router.every=0"),
        ("hash_table", {"k": 1, "table": "mod", "token_ids": ONE}, "router.table=mod: must be one of .*did you mean modulo"),
        ("base", {"method": "hungarian"}, "router.method=hungarian: must be exact"),
        ("moe_plus_plus", {"k": 2, "n_zero": 8}, "router.n_zero=8: must be from 1 to 7"),
        ("longcat", {"k": 2, "n_zero": 0}, "router.n_zero=0: must be from 1 to 7"),
        ("hierarchical", {"n_groups": 8}, "router.n_groups=8: must divide the 8 experts into 2 groups or more, of 2 or more"),
        ("topology_aware", {"fraction": 2.0, "near": NEAR}, "router.fraction=2.0"),
        ("topology_aware", {"near": np.arange(8) < 1}, "takes two experts of the token's own node, which holds 1"),
        ("swipe", {"k": 2, "factor": 0.5}, "router.factor=0.5: must be a number from 1 up"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name, given, said):
    function = getattr(routers, name)
    if said is None:
        function(SCORES, **given)
        return
    with pytest.raises(InputError, match=said) as caught:
        function(SCORES, **given)
    assert "\n" not in str(caught.value)


def test_tokens_that_do_not_divide_are_refused_where_they_must():
    with pytest.raises(InputError, match="router=base: the 23 tokens of a GPU must be a multiple of the 8 experts"):
        routers.base(SCORES[:23])
    with pytest.raises(InputError, match="router=quantile: 23 tokens of a GPU times top-2 must be a multiple of the 8 experts"):
        routers.quantile_balanced(SCORES[:23], k=2)


@pytest.mark.parametrize("n_experts", [1, 2, 7, 16, 33, 64, 160, 256, 384])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_best_few_are_those_of_a_stable_sort_ties_and_all(n_experts, dtype):
    """Rounded scores tie often; a wide range of k crosses from ranking to insertion and from lanes to none."""
    rng = np.random.default_rng(n_experts)
    for scores in (rng.normal(size=(50, n_experts)), rng.integers(0, 4, (50, n_experts)), np.full((3, n_experts), -np.inf)):
        for k in {min(k, n_experts) for k in (1, 2, 8, 40, n_experts)}:
            expected = np.argsort(-scores.astype(dtype), axis=1, kind="stable")[:, :k]
            assert (best(scores.astype(dtype), k) == expected).all()


@pytest.mark.parametrize(("n_experts", "n_groups", "best_groups"), [(8, 4, 2), (64, 8, 4), (160, 8, 3), (256, 8, 4), (64, 32, 9)])
@pytest.mark.parametrize("group_score", ["max", "top2", "share"])
def test_group_limited_is_a_stable_sort_inside_a_stable_sort(n_experts, n_groups, best_groups, group_score):
    rng = np.random.default_rng(3)
    k = 6 if n_experts > 8 else 4
    for scores in (rng.normal(size=(60, n_experts)), rng.integers(0, 5, (60, n_experts)).astype(float)):
        grouped = scores.reshape(60, n_groups, -1)
        members = {"max": 1, "top2": 2, "share": max(1, k // best_groups)}[group_score]
        total = np.sort(grouped, axis=2)[:, :, ::-1][:, :, :members].sum(axis=2)
        groups = np.argsort(-total, axis=1, kind="stable")[:, :best_groups]
        mask = np.zeros((60, n_groups), bool)
        np.put_along_axis(mask, groups, True, axis=1)
        allowed = np.where(mask[:, :, None], grouped, -np.inf).reshape(60, -1)
        expected = np.argsort(-allowed, axis=1, kind="stable")[:, :k]
        ids, _ = routers.group_limited(
            scores, k=k, score="none", n_groups=n_groups, best_groups=best_groups, group_score=group_score
        )
        assert (ids == expected).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("group_score", ["max", "top2"])
@pytest.mark.parametrize(
    ("n_experts", "n_groups", "best_groups", "k"), [(256, 8, 4, 8), (36, 4, 4, 7), (10, 5, 1, 2), (64, 4, 2, 20)]
)
def test_a_few_sigmoids_choose_as_all_sigmoids_do(dtype, n_experts, n_groups, best_groups, k, group_score):
    """Scores in the tail, where sigmoids are equal in their last digits; equal ones; many groups with the same sum."""
    rng = np.random.default_rng(n_experts)
    limits = {"k": k, "n_groups": n_groups, "best_groups": best_groups, "group_score": group_score}
    for width in (0.01, 1.0, 4.0, 10.0, 60.0):
        scores = np.concatenate([
            width * rng.standard_normal((700, n_experts)), np.round(width * rng.standard_normal((700, n_experts))),
            width + 1e-6 * rng.standard_normal((100, n_experts)), np.full((3, n_experts), -np.inf),
        ]).astype(dtype)  # fmt: skip
        few = routers.group_limited(scores, **limits, scale=2.5)
        every = routers.group_limited(activated(scores, "sigmoid"), **limits, scale=2.5, score="none")
        assert (few[0] == every[0]).all(), width
        assert (few[1] == every[1]).all(), width


def test_few_rows_are_too_close_to_call_without_all_sigmoids():
    """Two of 8 sums nearer than 1e-5 at the cut, where sums lie about 0.05 apart: 1 in 5,000 tokens; 4 times that is allowed."""
    scores = np.random.default_rng(0).standard_normal((20_000, 256)).astype(np.float32)
    limit = _Limit(k=8, n_groups=8, best_groups=4, members=2, renormalise=True, scale=1.0)
    ids, weights = np.empty((len(scores), 8), np.int64), np.empty((len(scores), 8))
    assert _by_scores(scores, limit, 0, ids, weights).size <= 16


def test_a_score_that_is_no_number_is_named_where_few_sigmoids_are_taken():
    scores = np.zeros((3000, 16), np.float32)
    scores[2345, 7] = np.nan
    with pytest.raises(InputError, match="token 2345, expert 7 is NaN"):
        routers.group_limited(scores, k=2, n_groups=4, best_groups=2)


def test_falling_stops_at_the_floor_the_sum_or_the_number():
    values = np.array([[0.1, 0.4, 0.2, 0.4], [0.0, 0.3, 0.0, 0.0]])
    assert falling(values, floor=0.0).tolist() == [[1, 3, 2, 0], [1, -1, -1, -1]]
    assert falling(values, floor=0.15).tolist() == [[1, 3, 2], [1, -1, -1]]
    assert falling(values, floor=0.0, target=0.5).tolist() == [[1, 3], [1, -1]]
    assert falling(values, floor=0.0, most=1).tolist() == [[1], [1]]


def test_activations_stay_finite_where_exp_does_not():
    extreme = np.array([[-1000.0, 0.0, 1000.0]], np.float32)
    assert activated(extreme, "sigmoid").tolist() == [[0.0, 0.5, 1.0]]
    assert activated(extreme, "softmax").tolist() == [[0.0, 0.0, 1.0]]
    np.testing.assert_allclose(activated(extreme, "sqrtsoftplus"), [[0.0, np.sqrt(np.log(2)), np.sqrt(1000)]], rtol=1e-6)


@pytest.mark.parametrize(("tokens", "experts"), [(8, 1), (6, 6), (64, 8), (96, 4), (200, 25)])
def test_base_is_as_good_as_scipys_assignment_and_the_auction_within_its_epsilon(tokens, experts):
    rng = np.random.default_rng(tokens)
    ties = rng.integers(0, 3, (tokens, experts)).astype(float)
    for scores, worst in ((rng.normal(size=(tokens, experts)), tokens / 50), (ties, math.inf)):
        places = np.repeat(scores, tokens // experts, axis=1)
        optimum = places[linear_sum_assignment(-places)].sum()
        for assigned, below in (
            (assigned_exactly(scores), 1e-9 * tokens),
            (assigned_by_auction(scores), worst * (scores.max() - scores.min())),   # ties outlast its exact rounds
        ):
            assert (np.bincount(assigned, minlength=experts) == tokens // experts).all()
            assert optimum - below <= scores[np.arange(tokens), assigned].sum() <= optimum + 1e-9 * tokens


def test_expert_choice_prefers_the_earlier_of_equal_tokens():
    ids, _ = routers.expert_choice(np.zeros((6, 2)), k=1)
    assert ids[:, 0].tolist() == [0, 0, 0, -1, -1, -1]
    assert (ids[:3] == [0, 1]).all()


def test_soft_moe_sends_the_same_whatever_the_scores():
    ids, _ = routers.soft_moe(SCORES)
    assert np.bincount(ids.ravel()).tolist() == [3] * 8
    few, _ = routers.soft_moe(SCORES, slots=1)
    assert few.ravel().tolist() == [*range(8), *[-1] * 16]


def test_mixture_of_depths_takes_its_share_of_every_sequence_in_every_other_layer():
    sequence = np.repeat([0, 1, 2], [16, 7, 1])
    scores = np.random.default_rng(4).normal(size=(24, 9))
    for layer in range(3):
        ids, _ = routers.mixture_of_depths(scores, k=2, capacity=0.25, sequence=sequence, layer=layer)
        taken = np.bincount(sequence[ids[:, 0] >= 0], minlength=3).tolist()
        assert taken == ([16, 7, 1] if layer == 1 else [4, 1, 1])
    depth = scores[:16, -1]
    first = routers.mixture_of_depths(scores, k=2, capacity=0.25, sequence=sequence, layer=0)[0][:16, 0] >= 0
    assert set(np.flatnonzero(first)) == set(np.argsort(-depth)[:4])


def test_zero_computation_experts_take_part_and_cost_nothing():
    """The last column is MoE++'s zero expert: it takes a choice, and its weight goes to the others."""
    scores = np.array([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    ids, weights = routers.moe_plus_plus(scores, k=2, n_zero=2)
    assert ids.tolist() == [[0, -1], [-1, -1]]
    softmax = np.exp(scores[0]) / np.exp(scores[0]).sum()
    np.testing.assert_allclose(weights[0], [softmax[0] / (softmax[0] + softmax[2]), 0.0])
    ids, weights = routers.longcat(scores, k=2, n_zero=1, scale=6.0, bias=np.array([0, 9.0, 0, 0]))
    assert ids.tolist() == [[1, 0], [1, -1]]
    np.testing.assert_allclose(weights[0], 6 * softmax[[1, 0]])


def test_the_topology_gate_lets_a_seventh_of_the_tokens_leave():
    scores = np.random.default_rng(5).normal(size=(100, 8))
    ids, weights = routers.topology_aware(scores, near=NEAR)
    leaving = ~NEAR[ids].all(axis=1)
    assert leaving.sum() == 14
    far_best = ~NEAR[scores.argmax(axis=1)]
    assert far_best[leaving].all()
    assert scores.max(axis=1)[leaving].min() >= scores.max(axis=1)[far_best & ~leaving].max()
    assert (ids[leaving, 1] == scores.argmax(axis=1)[leaving]).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1.0)
    free, _ = routers.topology_aware(scores, fraction=1.0, near=NEAR)
    assert (free == routers.top_k(scores, k=2)[0]).all()


def test_swipe_moves_what_is_over_the_mean_and_nothing_else():
    ids, _ = routers.swipe(SCORES, k=2)
    ranked = best(SCORES, 2)
    assert np.bincount(ids.ravel(), minlength=8).tolist() == [6] * 8
    assert (ids[0] == ranked[0]).all(), "the first token finds everything empty"
    roomy, _ = routers.swipe(SCORES, k=2, factor=8.0)
    assert (roomy == ranked).all()


def test_a_hash_gives_a_word_its_experts_for_good():
    ids, _ = routers.hash_table(np.zeros((3000, 8)), k=3, token_ids=np.arange(3000) % 1000)
    assert (ids[:1000] == ids[1000:2000]).all()
    table = balanced_table(1000, 8)
    share = np.bincount(table, 1 / np.arange(1, 1001))
    assert np.ptp(share[1:]) <= 1 / 990, "the first word alone fills an expert; the others end within a last word of each other"
    found, _ = routers.hash_table(np.zeros((1000, 8)), k=1, table="balanced", token_ids=np.arange(1000))
    assert (found[:, 0] == table).all()


def test_jitter_of_a_hair_changes_hardly_anything_and_much_changes_much():
    still, _ = routers.switch(SCORES)
    hair, _ = routers.switch(SCORES, jitter=1e-6, rng=np.random.default_rng(0))
    much, _ = routers.switch(SCORES, jitter=0.9, rng=np.random.default_rng(0))
    assert (still == hair).all()
    assert (still != much).any()


def test_the_second_expert_of_deepspeed_is_drawn_in_proportion():
    """40,000 tokens alike: expert 0 first; the second is drawn from the softmax of the others."""
    scores = np.tile(np.array([3.0, 1.0, 0.0, -1.0]), (40_000, 1))
    ids, _ = routers.gshard(scores, second="sampled", rng=np.random.default_rng(0))
    assert (ids[:, 0] == 0).all()
    p = np.exp([1.0, 0.0, -1.0]) / np.exp([1.0, 0.0, -1.0]).sum()
    counts = np.bincount(ids[:, 1], minlength=4)[1:]
    assert (np.abs(counts - 40_000 * p) <= 4 * np.sqrt(40_000 * p * (1 - p))).all()
