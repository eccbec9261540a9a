"""Which GPU owns a recorded token, by every rule; and that a trace read in part plays as the whole does."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clustersim.importers.rebatching import moetrace
from clustersim.types import InputError
from clustersim.workload import owners, trace_source
from clustersim.workload.deal import Columns, continuous_schedule
from clustersim.workload.streams import Recorded, stream_of
from clustersim.workload.trace import write_trace
from tests.unit.test_sampler import MODEL
from tests.unit.test_trace import made_up

RNG = np.random.default_rng(0)


def tokens(*lengths, rank=0):
    """Sequences of these lengths, one after the other."""
    seq = np.repeat(np.arange(len(lengths)), lengths)
    pos = np.concatenate([np.arange(n) for n in lengths])
    return Columns(rank=np.broadcast_to(rank, seq.shape).copy(), seq=seq, pos=pos)


def test_the_recorded_rank_is_the_gpu_where_there_are_as_many():
    deal = owners.recorded(RNG, tokens(4, 4, rank=[0, 1] * 4), 2, 2, 2)
    assert deal.rows.reshape(2, 4).tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert deal.context.reshape(2, 4).tolist() == [[1, 3, 1, 3], [2, 4, 2, 4]], "what is attended to goes by recorded positions"


def test_neighbouring_ranks_share_a_gpu_where_there_are_fewer():
    deal = owners.recorded(RNG, tokens(8, rank=np.arange(8) // 2), 2, 4, 1)
    assert deal.rows.reshape(2, 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_ranks_sequences_are_dealt_to_its_gpus_where_there_are_more():
    """Two ranks of two sequences each on four GPUs: a sequence each."""
    deal = owners.recorded(RNG, tokens(2, 2, 2, 2, rank=[0, 0, 0, 0, 3, 3, 3, 3]), 4, 2, 1)
    assert deal.rows.reshape(4, 2).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_rank_with_too_few_tokens_gives_them_again_and_one_rank_is_refused():
    deal = owners.recorded(RNG, tokens(3, rank=[0, 1, 1]), 2, 2, 1)
    assert deal.rows.reshape(2, 2).tolist() == [[0, 0], [1, 2]]
    assert (deal.distinct, deal.most_used) == (3, 2)
    with pytest.raises(InputError, match=r"names one rank for 2 GPUs; use workload\.deal=sequences"):
        owners.recorded(RNG, tokens(8), 2, 2, 1)


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 10), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_shuffled_tokens_come_once_before_any_comes_twice(n, gpus, each, steps):
    used = np.bincount(owners.shuffled(np.random.default_rng(n), tokens(n), gpus, each, steps).rows, minlength=n)
    assert used.max() - used.min() <= 1
    assert used.sum() == gpus * each * steps


def test_a_sequence_that_ends_makes_room_for_the_next():
    """One GPU, two seats, sequences a (4), b (2), c (1). Seat 1 begins half-way through b (2 * 1 // 2 = 1 token is gone). Steps:
    a0 b1 | a1 c0 | a2 a0 | a3 a1: behind the last sequence comes the first again."""
    deal = owners.continuous(RNG, tokens(4, 2, 1), 1, 2, 4)
    assert deal.rows.reshape(4, 2).tolist() == [[0, 5], [1, 6], [2, 0], [3, 1]]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_in_continuous_batching_every_seat_has_a_token_and_goes_on_by_one(lengths, gpus, batch, steps):
    have = tokens(*lengths)
    rows = owners.continuous(RNG, have, gpus, batch, steps).rows.reshape(gpus, steps, batch)
    for before, after in zip(rows[:, :-1].reshape(-1), rows[:, 1:].reshape(-1), strict=True):
        ended = have.pos[before] + 1 == lengths[have.seq[before]]
        assert (have.pos[after] == 0) if ended else after == before + 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_a_schedule_has_every_token_once_and_never_more_than_a_batch(lengths, batch):
    have = tokens(*lengths)
    rows, step = continuous_schedule(have.seq, have.pos, batch)
    assert sorted(rows) == list(range(have.n_tokens))
    assert np.bincount(step).max() <= batch
    assert np.bincount(step)[:-1].min(initial=batch) >= 1, "no step is empty"
    for seq in range(len(lengths)):
        own = step[have.seq[rows] == seq]
        assert (np.diff(own) == 1).all(), "a sequence that runs is not held"


def recorded_trace(n=40):
    rng = np.random.default_rng(5)
    trace = made_up(rng, tokens=n, layers=MODEL.n_moe_layers, experts=MODEL.n_experts, top_k=MODEL.top_k, scores=True, extra=True)
    return replace(trace, seq=np.arange(n) // 5, pos=np.arange(n) % 5, rank=np.arange(n) % 3, step=np.zeros(n, int), domain={})


@pytest.mark.parametrize("deal", ["sequences", "blocks", "batched", "recorded", "shuffled", "continuous"])
def test_a_trace_read_in_part_plays_as_the_whole(tmp_path, monkeypatch, deal):
    write_trace(recorded_trace(), tmp_path)
    whole = trace_source.recorded_tokens(tmp_path)
    monkeypatch.setattr(trace_source, "WHOLE", 0)
    part = trace_source.recorded_tokens(tmp_path)
    assert isinstance(part, Recorded)
    one, other = (stream_of(tokens, MODEL, 3, 4, steps=2, deal=deal) for tokens in (whole, part))
    assert one.notes == other.notes
    for a, b in zip(one.steps, other.steps, strict=True):
        np.testing.assert_array_equal(a.context, b.context)
        np.testing.assert_array_equal(a.token_ids(), b.token_ids())
        for layer in range(MODEL.n_moe_layers):
            np.testing.assert_array_equal(a.choose(layer).ids, b.choose(layer).ids)
            np.testing.assert_array_equal(a.choose(layer).weights, b.choose(layer).weights)
            np.testing.assert_array_equal(a.scores(layer, 2, 9), b.scores(layer, 2, 9))


def test_only_the_first_tokens_are_looked_at_when_asked(tmp_path):
    write_trace(recorded_trace(), tmp_path)
    assert trace_source.recorded_tokens(tmp_path, 7).n_tokens == 7
    with pytest.raises(InputError, match=r"trace\.tokens=0: must be a whole number from 1 up"):
        trace_source.recorded_tokens(tmp_path, 0)


def test_a_trace_is_cleaned_of_dummy_rows_copies_and_turns(tmp_path):
    trace = replace(recorded_trace(80), rank=np.zeros(80, int))
    ids = trace.expert_ids.copy()
    ids[:40] = ids[0]
    write_trace(replace(trace, expert_ids=ids, flags=np.zeros(80, np.uint8)), tmp_path)
    assert moetrace(tmp_path, clean=True).tokens.n_tokens == 40
    assert moetrace(tmp_path, layers=1).tokens.n_layers == 1
    assert moetrace(tmp_path, micro_batch=2).tokens.seq.tolist() == [0] * 40 + [1] * 40
    with pytest.raises(InputError, match="micro_batch=3: must divide the 80 tokens"):
        moetrace(tmp_path, micro_batch=3)
