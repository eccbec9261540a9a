"""What must hold of every capacity policy: exact, in integers, against the rule written out token by token."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustersim.workload import capacity_policies
from clustersim.workload.capacity_policies import ELSEWHERE, Contest, places

N_EXPERTS, POOLS, TOP_K = 8, 3, 3
POLICIES = capacity_policies.__all__
DROPPING = [name for name in POLICIES if name not in ELSEWHERE]
relaxed = settings(deadline=None, max_examples=60)       # examples are small; a busy machine may stall one
seeds = st.integers(0, 2**32 - 1)
rooms = st.lists(st.integers(0, 12), min_size=POOLS, max_size=POOLS)


def made(seed, room, tokens=40, top_k=TOP_K, missing=0.2):
    """Tokens with distinct experts, uneven popularity, weights with ties, some choices missing; pools in any order."""
    rng = np.random.default_rng(seed)
    scores = (rng.gumbel(size=(tokens, N_EXPERTS)) + 2 * rng.normal(size=N_EXPERTS)).astype(np.float32)
    asked = (-scores).argsort(axis=1)[:, :top_k]
    asked[rng.random(asked.shape) < missing] = -1
    room = np.broadcast_to(np.asarray(room).reshape(-1, 1), (POOLS, N_EXPERTS))
    return Contest(
        asked=asked, weights=rng.integers(0, 6, asked.shape) / 8, scores=lambda first, last: scores[first:last],
        pool=rng.integers(0, POOLS, tokens), unit=asked, room=np.ascontiguousarray(room),
    )


def run(policy, contest, seed=0, **options):
    return getattr(capacity_policies, policy)(np.random.default_rng(seed), contest, **options)


def loads(ids, pool):
    """Choices per (pool, expert)."""
    flat = (pool[:, None] * N_EXPERTS + ids)[ids >= 0]
    return np.bincount(flat, minlength=POOLS * N_EXPERTS).reshape(POOLS, N_EXPERTS)


@pytest.mark.parametrize("policy", POLICIES)
@relaxed
@given(seed=seeds, room=rooms)
def test_law_1_choices_are_conserved_and_an_expert_keeps_the_smaller_of_load_and_room(policy, seed, room):
    contest = made(seed, room)
    before = contest.asked.copy()
    kept = run(policy, contest)
    assert kept.dtype == np.int64
    assert (contest.asked == before).all(), "the input is left alone"
    dropped = (contest.asked >= 0) & (kept < 0)
    assert (kept[contest.asked < 0] == -1).all()
    assert (kept >= 0).sum() + dropped.sum() == (contest.asked >= 0).sum()
    own = np.minimum(loads(contest.asked, contest.pool), contest.room)
    if policy in DROPPING:
        assert ((kept == contest.asked) | (kept == -1)).all()
        assert (loads(kept, contest.pool) == own).all()
    else:
        assert (loads(kept, contest.pool) >= own).all()
        assert (loads(kept, contest.pool) <= contest.room).all()
        assert (loads(np.where(kept == contest.asked, kept, -1), contest.pool) == own).all()


@pytest.mark.parametrize("policy", DROPPING)
@relaxed
@given(seed=seeds, room=st.integers(0, 12))
def test_law_2_more_room_only_adds_to_what_is_kept_and_enough_keeps_all(policy, seed, room):
    kept, more, enough = (run(policy, made(seed, [c] * POOLS)) for c in (room, room + 1, 40))
    assert ((kept == more) | (kept == -1)).all()
    assert (enough == made(seed, 1).asked).all()


@pytest.mark.parametrize("policy", ELSEWHERE)
@relaxed
@given(seed=seeds)
def test_law_2_with_room_for_all_nothing_moves(policy, seed):
    contest = made(seed, [40] * POOLS)
    assert (run(policy, contest) == contest.asked).all()


@pytest.mark.parametrize("first", DROPPING)
@relaxed
@given(seed=seeds, room=rooms)
def test_law_3_rerouting_loses_no_more_than_dropping_and_no_token_holds_an_expert_twice(first, seed, room):
    contest = made(seed, room)
    dropped, moved = run(first, contest), run("reroute", contest, first=first)
    assert ((moved == dropped) | (dropped == -1)).all(), "who got a place keeps it"
    never_twice(moved)
    free = contest.room - loads(moved, contest.pool)
    for t, j in zip(*np.nonzero((contest.asked >= 0) & (moved < 0)), strict=True):
        others = set(np.flatnonzero(free[contest.pool[t]])) - set(moved[t].tolist())
        assert not others, f"choice {j} of token {t} was dropped while an expert had room"


@relaxed
@given(seed=seeds, room=rooms, top_k=st.integers(1, 3))
def test_law_3_a_token_is_left_behind_only_where_every_expert_is_full(seed, room, top_k):
    contest = made(seed, room, top_k=top_k)
    dropped, moved = run("choice_major", contest), run("no_token_left_behind", contest)
    assert ((moved == dropped) | (dropped == -1)).all()
    never_twice(moved)
    left_behind = (contest.asked >= 0).any(axis=1) & (moved < 0).all(axis=1)
    free = (contest.room - loads(moved, contest.pool)).sum(axis=1)
    assert not free[contest.pool[left_behind]].any()


def never_twice(ids):
    for row in ids.tolist():
        held = [expert for expert in row if expert >= 0]
        assert len(held) == len(set(held))


@pytest.mark.parametrize("policy", POLICIES)
@relaxed
@given(seed=seeds, room=rooms, draw=seeds)
def test_the_same_seed_gives_the_same_and_only_random_needs_one(policy, seed, room, draw):
    contest = made(seed, room)
    kept = run(policy, contest, draw)
    assert (kept == run(policy, contest, draw)).all()
    if policy != "random":
        assert (kept == run(policy, contest, draw + 1)).all()


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"random"}))
@relaxed
@given(seed=seeds, room=rooms)
def test_a_pool_is_decided_by_its_own_tokens_alone(policy, seed, room):
    contest = made(seed, room)
    kept = run(policy, contest)
    scores = contest.scores(0, len(contest.asked))
    for pool in range(POOLS):
        own = contest.pool == pool
        alone = Contest(
            asked=contest.asked[own], weights=contest.weights[own], pool=contest.pool[own], unit=contest.unit[own],
            scores=lambda first, last, own=own: scores[own][first:last], room=contest.room,
        )
        assert (run(policy, alone) == kept[own]).all()


@pytest.mark.parametrize("policy", ["position", "choice_major", "bpr", "prob"])
@relaxed
@given(seed=seeds, room=rooms)
def test_a_policy_keeps_whom_the_rule_written_out_keeps(policy, seed, room):
    contest = made(seed, room)
    scores = contest.scores(0, len(contest.asked)).astype(float)
    sure = np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1)           # 1 / the largest probability
    key = {
        "position": lambda t, j: (t,),
        "choice_major": lambda t, j: (j, t),
        "bpr": lambda t, j: (j, sure[t], t),
        "prob": lambda t, j: (-contest.weights[t, j], t),
    }[policy]
    expected = contest.asked.copy()
    for queue in queues(contest).values():
        for t, j in sorted(queue, key=lambda who: key(*who))[contest.room[contest.pool[queue[0][0]], 0] :]:
            expected[t, j] = -1
    assert (run(policy, contest) == expected).all()


def queues(contest):
    """(token, choice) of all that ask one expert for a place of one pool, by (pool, expert)."""
    asking = defaultdict(list)
    for t, j in zip(*np.nonzero(contest.asked >= 0), strict=True):
        asking[int(contest.pool[t]), int(contest.asked[t, j])].append((int(t), int(j)))
    return asking


@relaxed
@given(seed=seeds, room=rooms, tries=st.integers(1, N_EXPERTS))
def test_no_token_left_behind_is_the_rule_written_out_in_rounds(seed, room, tries):
    """Top-1: in round i the tokens without an expert, in order, try their i-th best; places go on counting what was kept."""
    contest = made(seed, room, top_k=1, missing=0.0)
    best = (-contest.scores(0, len(contest.asked))).argsort(axis=1, kind="stable")
    taken, expected = Counter(), np.full(len(contest.asked), -1)
    for turn in range(tries):
        for t in np.flatnonzero(expected < 0):
            queue = int(contest.pool[t]), int(best[t, turn])
            if taken[queue] < contest.room[queue]:
                taken[queue] += 1
                expected[t] = best[t, turn]
    assert (run("no_token_left_behind", contest, tries=tries)[:, 0] == expected).all()


@relaxed
@given(seed=seeds, room=rooms)
def test_counting_from_dropped_or_from_kept_first_choices_keeps_the_same_in_the_same_places(seed, room):
    """DeepSpeed's and Tutel's second choices stand behind all first ones, Mesh TensorFlow's behind the kept ones.

    Where the offsets differ first choices were dropped, so that the expert is full in both and the second choice is dropped.
    """
    contest = made(seed, room)
    counted, place = [[np.full(contest.asked.shape, False), np.full(contest.asked.shape, -1)] for _ in range(2)], places
    for (kept, slot), of_kept in zip(counted, (False, True), strict=True):
        offset = Counter()
        for j in range(TOP_K):
            here = Counter()
            for t in range(len(contest.asked)):
                queue = int(contest.pool[t]), int(contest.asked[t, j])
                if queue[1] >= 0:
                    slot[t, j] = offset[queue] + here[queue]
                    here[queue] += 1
                    kept[t, j] = slot[t, j] < contest.room[queue]
            for queue, n in here.items():
                offset[queue] += n
                if of_kept:
                    offset[queue] = min(offset[queue], int(contest.room[queue]))
    (all_kept, all_slot), (some_kept, some_slot) = counted
    assert (all_kept == some_kept).all()
    assert (all_slot == some_slot)[all_kept].all()
    assert (run("choice_major", contest) == np.where(all_kept, contest.asked, -1)).all()
    assert (place(contest, by_choice=True) == all_slot).all()


@relaxed
@given(seed=seeds, share=st.floats(0, 1))
@pytest.mark.parametrize("policy", DROPPING)
def test_the_protected_stay_and_the_others_share_what_they_leave(policy, seed, share):
    contest = made(seed, [4] * POOLS)
    protected = np.random.default_rng(seed).random(len(contest.asked)) < share
    guarded = Contest(
        asked=contest.asked, weights=contest.weights, scores=contest.scores, pool=contest.pool, unit=contest.unit,
        room=contest.room, protected=protected,
    )
    kept = run(policy, guarded)
    assert (kept[protected] == contest.asked[protected]).all()
    theirs = loads(np.where(protected[:, None], contest.asked, -1), contest.pool)
    others = loads(np.where(protected[:, None], -1, contest.asked), contest.pool)
    assert (loads(kept, contest.pool) == theirs + np.minimum(others, np.maximum(contest.room - theirs, 0))).all()
