"""The tokens of several forward passes, one after the other, and of the past a placement is decided on. No clock, no drops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from clustersim.model import Model
from clustersim.pick import did_you_mean, find
from clustersim.types import Choices, Float32s, Floats, InputError, Ints, Trace, Workload
from clustersim.workload import owners
from clustersim.workload.deal import Columns, Deal, deal_sequences
from clustersim.workload.scores import experts_alone
from clustersim.workload.source import from_trace

DEALS = ("sequences", "blocks", "batched", *owners.__all__)
DEAL_STREAM = 7_000_000         # of the random numbers of a deal, apart from every layer's
PIECE = 16_384                  # tokens whose scores are in memory at a time
NEXT_DOMAIN = 1_000_003         # between the seeds of made-up domains that follow each other


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Stream:
    """Steps that are played, and steps that a placement may look at before: never the same tokens."""

    steps: tuple[Workload, ...]
    past: tuple[Workload, ...]                  # apart from `steps`; empty when nothing is set apart
    notes: tuple[str, ...]                      # what a reader of the result has to know about the input


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Hand:
    """The tokens of every GPU in one step, ordered by GPU."""

    rows: Ints                                  # [gpus * tokens_per_gpu] row of the trace
    context: Ints                               # [gpus * tokens_per_gpu] place in its sequence, from 1


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Recorded:
    """A trace of which only the tokens that are played will be read: what is known of all of them, and how to read some."""

    rank: Ints
    seq: Ints
    pos: Ints
    domain: Mapping[int, str]
    n_layers: int
    n_experts: int
    top_k: int
    read: Callable[[Ints], Trace]               # rows, ascending -> these tokens

    @property
    def n_tokens(self) -> int:
        return int(self.seq.size)


def stream_of(
    trace: Trace | Recorded, model: Model, n_gpus: int, tokens_per_gpu: int,
    *, steps: int = 1, deal: str = "sequences", domain_steps: int | None = None, apart: bool = False, name: str = "trace",
    seed: int = 0,
) -> Stream:
    """Recorded tokens as steps; nothing is drawn.

    With deal `sequences` every GPU gets whole sequences in turn (`deal_sequences`) and takes `tokens_per_gpu` of them per step;
    with `blocks` the tokens in the order of the trace are cut into one block per step and GPU; with `batched` every GPU
    has `tokens_per_gpu` sequences in hand, and each gives one token per step, as in decoding. `recorded`, `shuffled`,
    `continuous` and functions of the user's: see `owners`.

    Args:
        domain_steps: the domains one after the other, in the order of the trace, each for so many steps; None: as recorded.
        apart: deal every other sequence of each domain as the past, and only the others as steps.
        name: what an error calls the trace.
        seed: of deals that draw.

    Raises:
        InputError: the trace is not the model's, it has too few tokens, or there is no such deal.
    """
    lasts = _lasts(steps, domain_steps)
    if deal not in DEALS and ":" not in deal:
        near = did_you_mean(str(deal), DEALS)
        raise InputError(f"workload.deal={deal}: there is no such deal{near} (known: {', '.join(DEALS)})")
    parts = [np.arange(trace.n_tokens)] if domain_steps is None else _domains(trace)
    if len(lasts) > len(parts):
        raise InputError(
            f"workload.steps={steps}: {name} has {len(parts)} domains, which last {len(parts) * lasts[0]} steps "
            f"(workload.domain_steps={domain_steps})"
        )
    hands: list[list[_Hand]] = [[], []]         # played, past
    for rows, lasting in zip(parts, lasts, strict=False):
        played = _every_other(trace, rows) if apart else np.ones(rows.size, bool)
        for side, own in enumerate((rows[played], rows[~played])):
            if own.size:
                hands[side] += _hands(trace, own, n_gpus, tokens_per_gpu, lasting, deal, seed)
            elif side == 0 or apart:
                raise InputError(f"{name}: a domain with one sequence cannot be shared by past and future")
    notes = _notes(trace, model, hands)
    if isinstance(trace, Recorded):
        used = np.unique(np.concatenate([hand.rows for side in hands for hand in side]))
        hands = [[replace(hand, rows=np.searchsorted(used, hand.rows)) for hand in side] for side in hands]
        trace = trace.read(used)
    played_of = partial(_workload, trace, model, n_gpus=n_gpus, tokens_per_gpu=tokens_per_gpu, name=name)
    made = [tuple(played_of(hand) for hand in side) for side in hands]
    return Stream(steps=made[0], past=made[1], notes=notes)


def passes_of(
    make: Callable[[int], Workload], model: Model, seed: int,
    *, steps: int = 1, deal: str = "sequences", domain_steps: int | None = None, apart: bool = False, sequence: int | None = None,
) -> Stream:
    """Made-up forward passes: `make(seed)` and those after it, whose tokens are those of more GPUs; without scores all are alike.

    With `domain_steps` the load is another after so many steps: the passes of another seed. With `apart` the passes
    after those played are the past: draws like them, and not the same ones. A sequence of `sequence` tokens that a batch does not
    hold goes on in the next pass, and looks back at what it had in those before.

    Raises:
        InputError: another deal than `sequences`, which only recorded tokens have.
    """
    if deal != "sequences":
        raise InputError(f"workload.deal={deal}: is for recorded traces; made-up tokens have no order")
    played: list[Workload] = []
    past: list[Workload] = []
    for i, lasting in enumerate(_lasts(steps, domain_steps)):
        first = make(seed + i * NEXT_DOMAIN)
        played += [_going_on(_later(first, model, number), number, sequence) for number in range(lasting)]
        past += [_later(first, model, lasting + number) for number in range(lasting if apart else 0)]
    return Stream(steps=tuple(played), past=tuple(past), notes=tuple(dict.fromkeys(n for w in played for n in w.notes)))


def rerouted_stream(stream: Stream, reroute: Callable[[int, Workload], Workload]) -> Stream:
    """The stream with another router: `reroute(number, step)`, the steps numbered from 0 on, then those of the past."""
    made = [reroute(i, tokens) for i, tokens in enumerate((*stream.steps, *stream.past))]
    notes = tuple(dict.fromkeys((*stream.notes, *(note for tokens in made for note in tokens.notes))))
    n = len(stream.steps)
    return Stream(steps=tuple(made[:n]), past=tuple(made[n:]), notes=notes)


def shared_out(stream: Stream, tensor: int, per_sequence: int = 1) -> Stream:
    """The stream with the tokens of each group of `tensor` GPUs shared out among them, in runs as even as whole sequences go.

    What a group attends to is what its GPUs hold together. `per_sequence`: tokens that decoding passes side by side.

    Raises:
        InputError: only counts are known, no tokens to share out.
    """
    if tensor == 1:
        return stream

    def shared(step: Workload) -> Workload:
        if step.count is not None:
            raise InputError(f"parallel.tensor={tensor}: shares out tokens, and there are counts alone; use trace.counts=false")
        each = np.bincount(step.source)[step.source] // per_sequence            # sequences of the token's group
        rank = step.index // per_sequence * tensor // each
        begins = -(-rank * each // tensor) * per_sequence                       # the first token of the rank
        return replace(step, source=step.source * tensor + rank, index=step.index - begins)

    return replace(stream, steps=tuple(map(shared, stream.steps)), past=tuple(map(shared, stream.past)))


def _lasts(steps: int, domain_steps: int | None) -> list[int]:
    """How many steps each domain lasts.

    Raises:
        InputError: a number of steps that cannot be.
    """
    for key, value in (("steps", steps), ("domain_steps", domain_steps)):
        if (value is not None or key == "steps") and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            null = " (null: domains are not told apart)" if key == "domain_steps" else ""
            raise InputError(f"workload.{key}={value}: must be a whole number from 1 up{null}")
    each = domain_steps or steps
    return [min(each, steps - begin) for begin in range(0, steps, each)]


def _going_on(tokens: Workload, number: int, sequence: int | None) -> Workload:
    """The pass with the places that its tokens have in sequences that began in passes before."""
    if not number or sequence is None:
        return tokens
    batch = np.bincount(tokens.source)[tokens.source]
    return replace(tokens, context=(tokens.index + number * batch) % sequence + 1)


def _later(first: Workload, model: Model, number: int) -> Workload:
    """The pass `number` passes after the first."""
    if number and first.count is not None:
        raise InputError("trace.counts=true: has one pass only; use trace.counts=false, or workload.steps=1 and no past load")
    if first.scores is None or number == 0:
        return first
    process, n = first.scores, first.source.size
    shift = number * n

    def scores(layer: int, begin: int, end: int) -> Float32s:
        return process(layer, begin + shift, end + shift)

    def choose(layer: int) -> Choices:
        experts = partial(experts_alone, scores, layer, model.n_experts)
        parts = [_best(experts(begin, min(begin + PIECE, n)), model.top_k) for begin in range(0, n, PIECE)]
        ids, weights = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Choices(ids=ids, weights=weights, scores=experts)

    return replace(first, choose=choose, scores=scores)


def _best(scores: Float32s, k: int) -> tuple[Ints, Floats]:
    """Experts of the k largest scores of every token, largest first, and the softmax over these k: both [tokens, k]."""
    top = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, scores.shape[1] - k :]
    top = np.take_along_axis(top, np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable"), axis=1)
    chosen = np.take_along_axis(scores, top, axis=1).astype(np.float64)
    odds = np.exp(chosen - chosen[:, :1])
    return top.astype(np.int64), odds / odds.sum(axis=1, keepdims=True)


def _workload(trace: Trace, model: Model, hand: _Hand, *, n_gpus: int, tokens_per_gpu: int, name: str) -> Workload:
    """The tokens of one step: each GPU's hand is dealt as if it were one sequence."""
    gpu = np.repeat(np.arange(n_gpus), tokens_per_gpu)
    own = replace(
        trace, expert_ids=trace.expert_ids[hand.rows], seq=gpu, pos=np.tile(np.arange(tokens_per_gpu), n_gpus),
        gate_weights=None if trace.gate_weights is None else trace.gate_weights[hand.rows],
        scores=None if trace.scores is None else trace.scores[hand.rows],
        step=np.zeros_like(gpu), rank=np.zeros_like(gpu), phase=trace.phase[hand.rows], flags=None,
        token_id=None if trace.token_id is None else trace.token_id[hand.rows],
    )
    return replace(from_trace(own, model, n_gpus, tokens_per_gpu, name=name), context=hand.context, notes=())


def _hands(
    trace: Trace | Recorded, rows: Ints, n_gpus: int, tokens_per_gpu: int, steps: int, deal: str, seed: int
) -> Iterator[_Hand]:
    if deal == "sequences":
        if steps > 1 and tokens_per_gpu * steps > rows.size:
            raise InputError(
                f"workload.tokens_per_gpu={tokens_per_gpu}: {steps} steps take {steps * tokens_per_gpu:,} tokens per GPU, and "
                f"there are {rows.size:,} to deal; a GPU gets no recorded sequence twice"
            )
        yield from _by_step(deal_sequences(_part(trace, rows), n_gpus, tokens_per_gpu * steps), rows, tokens_per_gpu, steps)
    elif deal == "blocks":
        yield from _blocks(trace, rows, n_gpus, tokens_per_gpu, steps)
    elif deal == "batched":
        yield from _batches(trace, rows, n_gpus, tokens_per_gpu, steps)
    else:
        if tokens_per_gpu < 1:
            raise InputError(f"workload.tokens_per_gpu={tokens_per_gpu}: each GPU needs at least one token")
        rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(DEAL_STREAM,))))
        dealt = find(owners, deal, "workload.deal")(rng, _part(trace, rows), n_gpus, tokens_per_gpu, steps)
        yield from _by_step(dealt, rows, tokens_per_gpu, steps)


def _by_step(dealt: Deal, rows: Ints, tokens_per_gpu: int, steps: int) -> Iterator[_Hand]:
    of_step = dealt.index // tokens_per_gpu
    for step in range(steps):
        own = of_step == step
        yield _Hand(rows=rows[dealt.rows[own]], context=dealt.context[own])


def _blocks(trace: Trace | Recorded, rows: Ints, n_gpus: int, tokens_per_gpu: int, steps: int) -> Iterator[_Hand]:
    """Contiguous blocks of the tokens, one per step and GPU."""
    size = n_gpus * tokens_per_gpu
    if steps * size > rows.size:
        raise InputError(
            f"workload.tokens_per_gpu={tokens_per_gpu}: {steps} steps of {n_gpus} GPUs take {steps * size:,} tokens, and there "
            f"are {rows.size:,} to cut blocks from; {rows.size // (steps * n_gpus)} would do"
        )
    order = rows[np.lexsort((trace.pos[rows], _first_seen(trace.seq[rows])))]
    context = _place_in_sequence(trace.seq[order])
    for step in range(steps):
        part = slice(step * size, (step + 1) * size)
        yield _Hand(rows=order[part], context=context[part] + 1)


def _batches(trace: Trace | Recorded, rows: Ints, n_gpus: int, batch: int, steps: int) -> Iterator[_Hand]:
    """One token of each of `batch` sequences per GPU and step.

    Sequences are dealt to the GPUs in turn. When they are used up they are dealt again, each time from another position: of
    n times the i-th begins at i/n of the sequence. One that ends begins anew.
    """
    order = rows[np.lexsort((trace.pos[rows], _first_seen(trace.seq[rows])))]
    length = np.bincount(_first_seen(trace.seq[order]))
    first = np.cumsum(length) - length
    seat = np.arange(n_gpus * batch)
    turn, sequence = np.divmod(seat, length.size)
    turns = -(-seat.size // length.size)
    at = turn * length[sequence] // turns
    by_gpu = np.argsort(seat % n_gpus, kind="stable")
    for step in range(steps):
        place = ((at + step) % length[sequence])[by_gpu]
        yield _Hand(rows=order[first[sequence[by_gpu]] + place], context=place + 1)


def _part(trace: Trace | Recorded, rows: Ints) -> Columns:
    """Where these rows of the trace come from, in their order."""
    return Columns(rank=trace.rank[rows], seq=trace.seq[rows], pos=trace.pos[rows])


def _domains(trace: Trace | Recorded) -> list[Ints]:
    """Rows of each domain, in the order of first appearance; tokens of unnamed sequences are one domain."""
    names = {name: i for i, name in enumerate(dict.fromkeys(["", *trace.domain.values()]))}
    sequences, which = np.unique(trace.seq, return_inverse=True)
    domain = np.array([names[trace.domain.get(int(seq), "")] for seq in sequences])[which]
    seen, first = np.unique(domain, return_index=True)
    return [np.flatnonzero(domain == one) for one in seen[np.argsort(first)]]


def _every_other(trace: Trace | Recorded, rows: Ints) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether a row belongs to the second, fourth, ... sequence of its domain."""
    played = np.zeros(trace.n_tokens, bool)
    for domain in _domains(trace):
        played[domain] = _first_seen(trace.seq[domain]) % 2 == 1
    return played[rows]


def _first_seen(values: Ints) -> Ints:
    """Each value's number in the order of first appearance."""
    _, first, which = np.unique(values, return_index=True, return_inverse=True)
    place = np.empty_like(first)
    place[np.argsort(first)] = np.arange(first.size)
    return place[which].astype(np.int64)


def _place_in_sequence(seq: Ints) -> Ints:
    """0, 1, 2, ... in every run of equal values."""
    begins = np.flatnonzero(np.append(True, seq[1:] != seq[:-1]))
    return np.arange(seq.size) - np.repeat(begins, np.diff(np.append(begins, seq.size)))


def _notes(trace: Trace | Recorded, model: Model, hands: list[list[_Hand]]) -> tuple[str, ...]:
    notes = []
    if trace.n_layers < model.n_moe_layers:
        notes.append(f"the trace's {trace.n_layers} layers repeat to fill the {model.n_moe_layers} MoE layers of {model.name}")
    elif trace.n_layers > model.n_moe_layers:
        notes.append(f"the first {model.n_moe_layers} of the trace's {trace.n_layers} layers are used, as {model.name} has")
    for side, said in zip(hands, ("", " for the past"), strict=True):
        if not side:
            continue
        times = np.bincount(np.concatenate([hand.rows for hand in side]), minlength=trace.n_tokens)
        distinct = int(np.count_nonzero(times))
        if times.max() > 1:
            notes.append(
                f"sequences are dealt again{said}: a recorded token is used {times.sum() / distinct:.3g} times, "
                f"at most {times.max()}"
            )
        if distinct < trace.n_tokens:
            notes.append(f"{distinct:,} of the trace's {trace.n_tokens:,} tokens are used{said}")
    return tuple(notes)
