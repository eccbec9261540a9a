"""Which recorded tokens each step has, and which belong to the past: never the same ones."""

import numpy as np
import pytest

from clustersim.config import compose
from clustersim.model import model_from
from clustersim.types import InputError, Trace
from clustersim.workload.source import from_sampler, from_trace
from clustersim.workload.streams import passes_of, rerouted_stream, stream_of

MODEL = model_from({**compose(["model=gpt_oss_20b"]).config["model"], "n_layers": 2, "n_experts": 250, "top_k": 2})


def trace(lengths, domains=None):
    """Sequences of these lengths; token t of all chooses experts t and t + 1 (mod 250), so that choices tell tokens apart."""
    seq = np.repeat(np.arange(len(lengths)), lengths)
    pos = np.concatenate([np.arange(n) for n in lengths])
    n = seq.size
    ids = (np.arange(n)[:, None, None] + np.array([0, 1])) % 250 * np.ones((1, 2, 1), int)
    zero = np.zeros(n, int)
    return Trace(
        expert_ids=ids.astype(np.int16), gate_weights=None, step=zero, rank=zero, seq=seq, pos=pos,
        phase=zero.astype(np.uint8), n_experts=250, domain=dict(enumerate(domains or ["a"] * len(lengths))),
    )


def rows(tokens):
    """The rows of `trace` that a step has; only for traces of up to 250 tokens."""
    return tokens.choose(0).ids[:, 0].tolist()


def test_one_step_of_whole_sequences_is_the_deal_of_the_single_pass():
    t = trace([7, 5, 9, 11, 3, 8, 6, 10])
    (step,), alone = stream_of(t, MODEL, 3, 10).steps, from_trace(t, MODEL, 3, 10)
    assert (step.source == alone.source).all()
    assert (step.index == alone.index).all()
    assert (step.context == alone.context).all()
    assert rows(step) == rows(alone)
    assert stream_of(t, MODEL, 3, 10).notes == alone.notes


def test_steps_go_on_where_the_one_before_ended():
    """Two GPUs, sequences of 4 in turn, 3 tokens per step: a GPU's sequence is cut between steps, and its places go on."""
    first, second = stream_of(trace([4] * 4), MODEL, 2, 3, steps=2).steps
    assert (rows(first), rows(second)) == ([0, 1, 2, 4, 5, 6], [3, 8, 9, 7, 12, 13])
    assert (first.context.tolist(), second.context.tolist()) == ([1, 2, 3] * 2, [4, 1, 2] * 2)
    assert second.index.tolist() == [0, 1, 2] * 2


def test_blocks_cut_the_trace_in_its_order_one_block_per_step_and_gpu():
    first, second = stream_of(trace([5, 6, 5]), MODEL, 2, 3, steps=2, deal="blocks").steps
    assert (rows(first), rows(second)) == ([0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11])
    assert first.context.tolist() == [1, 2, 3, 4, 5, 1]
    with pytest.raises(InputError, match=r"workload\.tokens_per_gpu=5: 2 steps of 2 GPUs take 20 tokens, .* 16 .*; 4 would do"):
        stream_of(trace([5, 6, 5]), MODEL, 2, 5, steps=2, deal="blocks")


def test_a_batch_takes_one_token_of_each_sequence_per_step_and_deals_them_again_from_elsewhere():
    """Two GPUs of two sequences each, and three sequences to deal: the fourth seat has the first sequence from its middle."""
    stream = stream_of(trace([6, 6, 6]), MODEL, 2, 2, steps=3, deal="batched")
    # seats 0 to 3 are on GPUs 0, 1, 0, 1 and have sequences 0, 1, 2 and, from place 3, 0
    assert [rows(step) for step in stream.steps] == [[0, 12, 6, 3], [1, 13, 7, 4], [2, 14, 8, 5]]
    assert stream.steps[0].context.tolist() == [1, 1, 1, 4]
    assert not any("dealt again" in note for note in stream.notes), "no token is used twice in three steps"
    longer = stream_of(trace([6, 6, 6]), MODEL, 2, 2, steps=4, deal="batched")
    assert "sequences are dealt again: a recorded token is used 1.14 times, at most 2" in longer.notes


def test_domains_follow_each_other():
    t = trace([6, 6, 6, 6], ["a", "b", "a", "b"])
    stream = stream_of(t, MODEL, 2, 2, steps=5, domain_steps=3)
    domain = [{"ab"[row // 6 % 2] for row in rows(step)} for step in stream.steps]
    assert domain == [{"a"}] * 3 + [{"b"}] * 2
    with pytest.raises(InputError, match=r"workload\.steps=7: mine has 2 domains, which last 6 steps"):
        stream_of(t, MODEL, 2, 2, steps=7, domain_steps=3, name="mine")


@pytest.mark.parametrize("deal", ["sequences", "batched", "blocks"])
@pytest.mark.parametrize("domain_steps", [None, 1])
def test_the_past_and_the_steps_share_no_sequence_and_halve_every_domain(deal, domain_steps):
    t = trace([12] * 8, ["a"] * 4 + ["b"] * 4)
    stream = stream_of(t, MODEL, 2, 3, steps=2, deal=deal, domain_steps=domain_steps, apart=True)
    assert len(stream.past) == len(stream.steps) == 2
    past, played = ({row // 12 for step in steps for row in rows(step)} for steps in (stream.past, stream.steps))
    assert past <= {0, 2, 4, 6}
    assert played <= {1, 3, 5, 7}
    if domain_steps:
        assert [{row // 48 for row in rows(step)} for step in stream.steps] == [{0}, {1}]


def test_what_cannot_be_dealt_is_said():
    t = trace([4, 4])
    with pytest.raises(InputError, match=r"workload\.tokens_per_gpu=3: 3 steps take 9 tokens per GPU, and there are 8 to deal"):
        stream_of(t, MODEL, 2, 3, steps=3)
    with pytest.raises(InputError, match=r"workload\.deal=batch: there is no such deal; did you mean batched\?"):
        stream_of(t, MODEL, 2, 2, deal="batch")
    for key, value in (("steps", 0), ("domain_steps", 0), ("steps", True)):
        with pytest.raises(InputError, match=rf"workload\.{key}={value}: must be a whole number from 1 up"):
            stream_of(t, MODEL, 2, 2, **{"steps": 1, key: value})
    with pytest.raises(InputError, match="a domain with one sequence cannot be shared by past and future"):
        stream_of(trace([8]), MODEL, 2, 2, apart=True)


# ---- made-up tokens


def made(seed):
    return from_sampler(MODEL, 2, 16, seed, preset="moderate", sequence=8)


def test_made_up_passes_are_those_of_more_gpus_and_the_past_is_none_of_them():
    stream = passes_of(made, MODEL, 3, steps=2, apart=True)
    more = from_sampler(MODEL, 8, 16, 3, preset="moderate", sequence=8)
    passes = [step.choose(1).ids for step in (*stream.steps, *stream.past)]
    assert (np.concatenate(passes) == more.choose(1).ids).all()


def test_made_up_domains_have_loads_of_their_own_and_the_same_as_long_as_they_last():
    big = from_sampler(MODEL, 2, 4000, 3, preset="narrow_domain")
    stream = passes_of(lambda seed: from_sampler(MODEL, 2, 4000, seed, preset="narrow_domain"), MODEL, 3, steps=3, domain_steps=2)
    load = [np.bincount(step.choose(0).ids.ravel(), minlength=250) for step in stream.steps]
    assert (load[0] == np.bincount(big.choose(0).ids.ravel(), minlength=250)).all()
    assert np.corrcoef(load[0], load[1])[0, 1] > 0.9
    assert np.corrcoef(load[0], load[2])[0, 1] < 0.5


def test_a_router_is_put_before_every_step():
    stream = passes_of(made, MODEL, 3, steps=2, apart=True)
    seen = []
    rerouted_stream(stream, lambda i, tokens: seen.append(i) or tokens)
    assert seen == [0, 1, 2, 3]
    with pytest.raises(InputError, match=r"workload\.deal=batched: is for recorded traces"):
        passes_of(made, MODEL, 3, deal="batched")
