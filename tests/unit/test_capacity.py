"""Who keeps a place, and how a rule is read from the config."""

from functools import partial

import numpy as np
import pytest

from clustersim.types import Choices, InputError
from clustersim.workload import capacity_policies
from clustersim.workload.capacity import applied_weights, limit, protected_tokens
from tests.contests import assigned, contest, rule


def limited(what, ids, source=None, weights=None, scores=None, n_gpus=1, n_experts=4, seed=0, top_k=None, **more):
    ids = np.asarray(ids)
    source = np.zeros(len(ids), int) if source is None else np.asarray(source)
    index = np.arange(len(ids)) - np.searchsorted(source, source)
    choices = Choices(ids=ids, weights=weights, scores=scores)
    rng = np.random.default_rng(seed)
    return limit(
        rng, what, choices, source=source, index=index, n_gpus=n_gpus, n_experts=n_experts, top_k=top_k or ids.shape[1], **more
    )


# ---- policies


def test_position_keeps_the_earliest_tokens():
    asked = [[0, 1], [0, 2], [0, 1], [0, 3]]
    assert assigned("position", asked, 2).tolist() == [[0, 1], [0, 2], [-1, 1], [-1, 3]]


def test_choice_major_keeps_first_choices_before_second_ones():
    asked = [[0, 1], [2, 0], [0, 1], [0, 3]]
    assert assigned("position", asked, 2).tolist() == [[0, 1], [2, 0], [-1, 1], [-1, 3]]
    assert assigned("choice_major", asked, 2).tolist() == [[0, 1], [2, -1], [0, 1], [-1, 3]]


def test_prob_keeps_the_largest_weights_and_of_equal_ones_the_earlier_token():
    asked = np.zeros((4, 1), int)
    kept = partial(assigned, "prob", asked)
    assert kept(2, weights=np.array([[0.1], [0.5], [0.2], [0.5]])).ravel().tolist() == [-1, 0, -1, 0]
    assert kept(3, weights=np.full((4, 1), 0.25)).ravel().tolist() == [0, 0, 0, -1]


def test_prob_tells_weights_apart_that_differ_in_the_last_bit_and_orders_signs():
    one_up = np.nextafter(0.5, 1)
    kept = partial(assigned, "prob", np.zeros((4, 1), int))
    assert kept(1, weights=np.array([[0.5], [one_up], [0.5], [0.4]])).ravel().tolist() == [-1, 0, -1, -1]
    assert kept(2, weights=np.array([[-2.0], [-1.0], [-0.0], [0.0]])).ravel().tolist() == [-1, -1, 0, 0]


def test_every_pool_has_room_of_its_own_and_tokens_need_not_be_ordered_by_pool():
    asked = np.zeros((4, 1), int)
    assert assigned("position", asked, [1, 2], source=[0, 0, 1, 1]).ravel().tolist() == [0, -1, 0, 0]
    assert assigned("position", asked, [1, 1], source=[1, 0, 1, 0]).ravel().tolist() == [0, 0, -1, -1]


def test_a_choice_of_no_expert_takes_no_room_and_stays_none():
    asked = [[-1, 0], [-1, 0], [-1, -1], [0, -1]]
    for policy in ("position", "choice_major"):
        assert (assigned(policy, asked, 2) >= 0).sum() == 2
        assert assigned(policy, asked, 2)[2].tolist() == [-1, -1]


def test_many_experts_are_told_apart():
    asked = np.array([[69_999], [4_463], [69_999], [4_463]])        # alike in their last 16 bits
    for policy in ("position", "prob"):
        kept = assigned(policy, asked, 1, n_experts=70_000, weights=np.ones((4, 1)))
        assert kept.ravel().tolist() == [69_999, 4_463, -1, -1]


def test_bpr_ranks_tokens_by_the_softmax_over_all_experts_where_scores_are_known_and_by_weight_where_not():
    """Weights over the chosen two say token 0, the softmax over all four says token 1: its others score low."""
    scores = np.array([[2.0, 0.0, 1.9, 1.8], [1.0, 0.0, -9.0, -9.0]], np.float32)
    weights = np.array([[0.88, 0.12], [0.73, 0.27]])
    asked = np.array([[0, 1], [0, 1]])
    assert assigned("bpr", asked, 1, weights=weights, scores=scores, n_experts=4).tolist() == [[-1, -1], [0, 1]]
    assert assigned("bpr", asked, 1, weights=weights, n_experts=4).tolist() == [[0, 1], [-1, -1]]


def test_random_selection_keeps_every_token_alike():
    """Of 4 tokens for 2 places each stays in half of 4,000 draws: sd of the share sqrt(1/4 / 4000)."""
    rng = np.random.default_rng(5)
    stays = np.mean([assigned("random", np.zeros((4, 1), int), 2, rng=rng).ravel() >= 0 for _ in range(4000)], axis=0)
    assert (np.abs(stays - 0.5) <= 4 * np.sqrt(0.25 / 4000)).all()


@pytest.mark.parametrize(("top_k", "same"), [(1, "random"), (2, "choice_major"), (3, "prob"), (8, "prob")])
def test_deepspeed_decides_by_the_number_of_choices(top_k, same):
    rng = np.random.default_rng(0)
    asked = rng.random((60, 10)).argsort(axis=1)[:, :top_k]
    competing = contest(asked, 4, weights=rng.random(asked.shape))
    one, other = (
        getattr(capacity_policies, name)(np.random.default_rng(1), competing) for name in ("deepspeed", same)
    )
    assert (one == other).all()


def test_a_rerouted_choice_takes_the_best_expert_with_room_that_the_token_does_not_hold():
    scores = np.array([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0], [3.0, 0.0, 2.0, 1.0]], np.float32)
    asked = [[0, 1], [0, 1], [0, 2]]
    # token 1 finds 0 full and goes to 2 (1 it holds); token 2 finds 0 full, holds 2, and goes to 3
    assert assigned("reroute", asked, [[1, 2, 2, 1]], scores=scores).tolist() == [[0, 1], [2, 1], [3, 2]]
    # with 3 closed, token 2 has only 1 left, which is full
    assert assigned("reroute", asked, [[1, 2, 2, 0]], scores=scores).tolist() == [[0, 1], [2, 1], [-1, 2]]


def test_an_expert_that_the_router_has_masked_is_no_way_out():
    scores = np.array([[1.0, -np.inf], [1.0, -np.inf]], np.float32)
    for policy in capacity_policies.ELSEWHERE:
        assert assigned(policy, [[0], [0]], [[1, 1]], scores=scores).ravel().tolist() == [0, -1]


def test_no_token_is_left_behind_while_an_expert_has_room():
    scores = np.array([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]], np.float32)
    asked = np.zeros((4, 1), int)
    kept = partial(assigned, "no_token_left_behind", asked, [[1, 1, 1]], scores=scores)
    assert kept().ravel().tolist() == [0, 2, 1, -1]                     # second choices in the order of the tokens
    assert kept(options={"tries": 1}).ravel().tolist() == [0, -1, -1, -1]
    assert kept(options={"tries": 2}).ravel().tolist() == [0, 2, 1, -1]


def test_a_token_that_keeps_a_choice_is_not_left_behind():
    scores = np.array([[3.0, 2.0, 1.0, 0.0]] * 3, np.float32)
    asked = np.array([[0, 1]] * 3)
    kept = assigned("no_token_left_behind", asked, [[1, 2, 1, 1]], scores=scores)
    assert kept.tolist() == [[0, 1], [-1, 1], [2, -1]]


def test_the_protected_come_first_and_stay_even_where_there_is_no_room_for_all():
    asked = np.zeros((4, 1), int)
    late = np.array([False, False, False, True])
    kept = partial(assigned, asked=asked, weights=np.array([[0.9], [0.8], [0.7], [0.1]]), rng=np.random.default_rng(0))
    for policy in ("position", "choice_major", "bpr", "prob", "random", "deepspeed"):
        assert kept(policy, room=2, protected=late)[3] == 0
        assert (kept(policy, room=2, protected=late) >= 0).sum() == 2
        assert (kept(policy, room=1, protected=late | True) >= 0).all()


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("prob", r"capacity\.drop=prob: the trace has no gate weights.*use capacity\.drop=position"),
        ("deepspeed", r"capacity\.drop=prob: the trace has no gate weights"),
        ("bpr", r"capacity\.drop=bpr: the trace has neither gate weights nor scores"),
        ("reroute", r"capacity\.drop=reroute: the trace has no router scores.*use trace=sampled"),
        ("no_token_left_behind", r"capacity\.drop=no_token_left_behind: the trace has no router scores"),
    ],
)
def test_a_policy_that_needs_what_is_not_known_says_what_would_do(policy, says):
    with pytest.raises(InputError, match=says):
        assigned(policy, np.zeros((4, 3), int), 1, n_experts=5)


def test_a_score_that_is_no_number_is_refused():
    scores = np.zeros((4, 3), np.float32)
    scores[2, 1] = np.nan
    for policy in ("bpr", "reroute", "no_token_left_behind"):
        with pytest.raises(InputError, match=rf"capacity\.drop={policy}: the router score of token 2 is nan"):
            assigned(policy, np.zeros((4, 1), int), 1, n_experts=3, scores=scores)


def test_options_of_a_policy_are_judged():
    with pytest.raises(InputError, match=r"capacity\.tries=0: a token tries at least one"):
        assigned("no_token_left_behind", [[0]], 1, options={"tries": 0})
    with pytest.raises(InputError, match=r"capacity\.first=reroute: must be a policy that only drops"):
        assigned("reroute", [[0]], 1, options={"first": "reroute"})
    with pytest.raises(InputError, match=r"capacity\.first=probs: there is no such first.*did you mean prob\?"):
        assigned("reroute", [[0]], 1, options={"first": "probs"})


def test_scores_beyond_the_models_experts_are_no_way_out():
    """A third column, as of a zero-computation expert."""
    scores = np.array([[2.0, 1.0, 9.0]] * 3, np.float32)
    for policy in capacity_policies.ELSEWHERE:
        assert assigned(policy, [[0], [0], [0]], [[1, 1]], scores=scores).ravel().tolist() == [0, 1, -1]


# ---- rules


def test_a_formula_counts_on_the_routers_top_k_not_on_how_many_choices_there_happen_to_be():
    wide = np.full((8, 5), -1)
    wide[:, 0] = 0
    done = limited(rule(factor=1.0, drop="position"), wide, n_experts=4, top_k=2)
    assert done.room.tolist() == [[4] * 4]


def test_no_factor_means_nobody_is_dropped():
    done = limited(rule(), [[0, 1], [0, 1]])
    assert done.room is None
    assert done.assigned.tolist() == [[0, 1], [0, 1]]


def test_a_factor_becomes_room_per_gpu_and_the_policy_gives_it_away():
    done = limited(rule(factor=1.0, drop="position"), [[0]] * 4, source=[0, 0, 0, 1], n_gpus=2, n_experts=2)
    assert done.room.tolist() == [[2, 2], [1, 1]]      # 3/2 rounded up, 1/2 rounded up
    assert done.assigned.ravel().tolist() == [0, 0, -1, 0]


def test_one_pool_for_all_counts_all_tokens_and_the_lower_gpu_comes_first():
    done = limited(rule(factor=1.0, drop="position", scope="global"), [[0]] * 4, source=[0, 0, 0, 1], n_gpus=2, n_experts=2)
    assert done.room.tolist() == [[2, 2]]
    assert done.gpu_of_pool is None
    assert done.assigned.ravel().tolist() == [0, 0, -1, -1]


def test_local_groups_are_as_few_and_as_even_as_they_come():
    """GPU 0 has 7 tokens, GPU 2 has 4, at most 3 to a group: 3 groups of 3, 2, 2 and 2 of 2."""
    source = np.repeat([0, 2], [7, 4])
    done = limited(
        rule(factor=1.0, drop="position", scope="group", group_tokens=3), np.zeros((11, 1), int), source=source,
        n_gpus=3, n_experts=2,
    )
    assert done.gpu_of_pool.tolist() == [0, 0, 0, 2, 2]
    assert done.room[:, 0].tolist() == [2, 1, 1, 1, 1]
    assert (done.assigned.ravel() >= 0).tolist() == [True, True, False, True, False, True, False, True, False, True, False]


def test_the_budget_of_a_gpu_is_shared_by_all_its_experts():
    """Device-level capacity: 8 choices, 2 GPUs, factor 1: each computes 4, those of largest weight."""
    ids = np.array([[0, 1], [0, 1], [0, 1], [2, 3]])
    weights = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    done = limited(
        rule(factor=1.0, drop="prob", per="gpu", scope="global"), ids, weights=weights, n_gpus=2, gpu_of_choice=ids // 2
    )
    assert done.room.tolist() == [[4, 4]]
    assert done.assigned.tolist() == [[0, -1], [0, -1], [0, 1], [2, 3]]


def test_the_share_of_protected_sequences_is_drawn_once_by_sequence():
    """2,000 sequences of 5 tokens: a tenth of them, whole, up to 4 standard deviations of a binomial share."""
    context = np.tile(np.arange(1, 6), 2000)
    what = rule("deepseek_v2")
    one = protected_tokens(np.random.default_rng(3), what, context)
    assert (one == protected_tokens(np.random.default_rng(3), what, context)).all()
    sequences = one.reshape(2000, 5)
    assert (sequences == sequences[:, :1]).all()
    assert abs(one.mean() - 0.1) <= 4 * np.sqrt(0.1 * 0.9 / 2000)
    assert protected_tokens(np.random.default_rng(3), rule(), context) is None


def test_weights_that_are_kept_are_renormalised_where_the_rule_says_so():
    weights, asked = np.array([[0.5, 0.3], [0.5, 0.3], [0.5, 0.3]]), np.array([[0, 1], [0, 1], [0, -1]])
    left = np.array([[0, -1], [-1, -1], [0, -1]])
    assert applied_weights(weights, asked, left, renormalise=False).tolist() == [[0.5, 0], [0, 0], [0.5, 0]]
    assert applied_weights(weights, asked, left, renormalise=True).tolist() == [[1, 0], [0, 0], [1, 0]]
    one = applied_weights(weights[:, :1], asked[:, :1], left[:, :1], renormalise=True)
    assert one.ravel().tolist() == [0.5, 0, 0.5], "with one choice the weight would always be 1: nobody does that"


def test_a_weight_that_is_no_number_is_refused_where_it_is_asked_and_a_limit_is_set():
    weights = np.array([[0.5, np.nan], [0.5, np.nan]])
    with pytest.raises(InputError, match=r"capacity\.factor=1\.0: a gate weight of token 1 is nan"):
        limited(rule(factor=1.0), [[0, -1], [0, 1]], weights=weights)
    limited(rule(factor=1.0), [[0, -1], [0, -1]], weights=weights)
    limited(rule(), [[0, 1], [0, 1]], weights=weights)


def test_options_go_to_the_formula_or_the_policy_that_takes_them():
    what = rule("deepspeed", min_capacity=3, drop="reroute", first="prob")
    assert what.size.keywords == {"min_capacity": 3}
    assert what.policy.keywords == {"first": "prob"}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"rule": "megaton"}, r"^capacity\.rule=megaton: there is no such rule; .*did you mean megatron\?"),
        ({"drop": "probs"}, r"^capacity\.drop=probs: there is no such drop; .*did you mean prob\?"),
        ({"scope": "gpu"}, r"^capacity\.scope=gpu: must be source or group or global"),
        ({"per": "node"}, r"^capacity\.per=node: must be expert or gpu"),
        ({"where": "exprt"}, r"^capacity\.where=exprt: must be source or expert; did you mean expert\?"),
        ({"pad": 8}, r"^capacity\.pad=8: must be true or false"),
        ({"pad_multiple": 0}, r"^capacity\.pad_multiple=0: must be a whole number from 1 up"),
        ({"pad_multiple": 1.5}, r"^capacity\.pad_multiple=1\.5: must be a whole number"),
        ({"pad_multiple": None}, r"^capacity\.pad_multiple=null: must be a whole number"),
        ({"group_tokens": 0}, r"^capacity\.group_tokens=0: must be a whole number from 1 up or null"),
        ({"renormalise": "maybe"}, r"^capacity\.renormalise=maybe: must be true or false"),
        ({"protect": 1}, r"^capacity\.protect=1: must be a share"),
        ({"factor": 0}, r"^capacity\.factor=0: must be a number above 0"),
        ({"factor": True}, r"^capacity\.factor=true: must be a number above 0"),
        ({"factor": 1, "preset": "deepspeed", "min_capacity": -1}, r"^capacity\.min_capacity=-1: must be a whole number from 0"),
        ({"preset": "deepspeed", "min_capacity": "x"}, r"^capacity\.min_capacity=x: must be a whole number"),
        ({"scope": "group"}, r"^capacity\.scope=group: say how large"),
        ({"pad": True, "per": "gpu"}, r"^capacity\.pad=true: fixed buffers are an expert's"),
        ({"pad": True, "scope": "global"}, r"^capacity\.pad=true: with capacity\.scope=global.*capacity\.where=expert"),
        ({"drop": "reroute", "per": "gpu"}, r"^capacity\.drop=reroute: .*not with capacity\.per=gpu"),
        ({"drop": "no_token_left_behind", "where": "expert"}, r"^capacity\.drop=no_token_left.* not with capacity\.where=expert"),
        ({"frst": "prob", "drop": "reroute"}, r"^capacity\.frst: there is no such key; did you mean capacity\.first\?"),
        ({"first": "prob"}, r"^capacity\.first: there is no such key"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_is_refused_in_one_line(overrides, says):
    with pytest.raises(InputError, match=says) as refused:
        rule(**overrides)
    assert "\n" not in str(refused.value)
