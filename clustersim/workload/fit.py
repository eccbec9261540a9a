"""Sampler parameters from a trace: each parameter is moved until its own statistic of sampled tokens is that of the trace.

The method of simulated moments (McFadden 1989). Writes no files and judges nothing: how good a fit is, is `fit_score`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from clustersim.types import Floats, InputError, Ints, Trace
from clustersim.workload import statistics
from clustersim.workload.sampler_parameters import MOST_DIMENSIONS, Domain, Parameters, load_parameters
from clustersim.workload.sampler_popularity import concentration, inclusion
from clustersim.workload.sampler_process import Pieces, Process
from clustersim.workload.trace_counts import Counts
from clustersim.workload.trace_rules import take

ROUNDS = 10
MOST = 65_536                       # tokens that are sampled anew in every round
LAGS = (1, 2, 4, 16, 64)
NEAR, FAR = 1, 16                   # the lags that the loadings of the two memories answer for
FAST = (0.0, 0.2, 0.4, 0.6)         # what the memories may keep from token to token
SLOW = (0.8, 0.9, 0.95, 0.97, 0.98, 0.99)
LOADINGS = np.linspace(0.0, 0.98, 99)
UNNAMED = "unnamed"                 # the domain of sequences without one

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Measured:
    """What of a trace the parameters answer for; per layer, NaN where the trace cannot tell."""

    overlap: Floats                 # [lags, layers]
    spread: Floats                  # [layers] between sequences
    recall: Floats                  # [layers - 1] of the next layer
    far_recall: float               # of the layer half the depth ahead, mean
    lift: Floats                    # [layers, experts, experts]
    expected: Floats


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Sequences:
    """The sequences of a trace, by their number, and which domain each belongs to."""

    number: Ints
    length: Ints
    domain: Ints                    # index into names
    names: tuple[str, ...]


def fit_tokens(
    trace: Trace, *, seed: int = 0, rounds: int = ROUNDS, progress: Progress = lambda fraction, what: None
) -> tuple[Parameters, tuple[str, ...]]:
    """Parameters fitted to a trace with tokens, and notes on what it could not tell.

    Loads come from counting, by layer and domain. Everything else is found by sampling tokens for the same sequences,
    comparing, and moving, `rounds` times with directions of experts drawn anew, by less and less.

    Raises:
        InputError: a token without any expert, or more than a tenth of the choices missing.
    """
    if (missing := float((trace.expert_ids < 0).mean())) > 0.1:
        raise InputError(f"fit: {missing:.0%} of the trace's choices are missing; the sampler gives every token top_k experts")
    domains, names = _domains(trace)
    part = _part(trace, seed)
    sequences = sequences_of(part, names)
    real = measure(part)
    parameters, notes = _start(part, domains, real)
    if part.n_tokens < trace.n_tokens:
        notes = (*notes, f"loads are those of all tokens, everything else is fitted to {part.n_tokens:,} of {trace.n_tokens:,}")
    for turn in range(rounds):
        progress(turn / rounds, f"fitting, round {turn + 1} of {rounds}")
        sampled = sample_like(parameters, part, sequences, seed=seed * 1000 + turn)
        parameters = _moved(parameters, real, measure(sampled), _chance(parameters, sequences, trace.top_k), turn)
    return _sharpened(parameters, part, sequences, seed), notes


def _part(trace: Trace, seed: int) -> Trace:
    """Whole sequences of a trace, drawn until they have MOST tokens; all of a trace that has no more."""
    if trace.n_tokens <= MOST:
        return trace
    number, length = np.unique(trace.seq, return_counts=True)
    order = np.random.default_rng(seed).permutation(number.size)
    enough = int(np.searchsorted(np.cumsum(length[order]), MOST)) + 1
    return take(trace, np.flatnonzero(np.isin(trace.seq, number[order[:enough]])))


def sequences_of(trace: Trace, names: tuple[str, ...] | None = None) -> Sequences:
    """The sequences of a trace; `names` are the domains to index, else all that occur."""
    number, length = np.unique(trace.seq, return_counts=True)
    own = [trace.domain.get(int(seq)) or UNNAMED for seq in number]
    names = tuple(sorted(set(own))) if names is None else names
    return Sequences(number=number, length=length, domain=np.array([names.index(name) for name in own]), names=names)


def measure(trace: Trace) -> Measured:
    """The statistics that the parameters answer for."""
    lift, expected = statistics.pair_lift(trace.expert_ids, trace.n_experts)
    several = np.unique(trace.seq).size > 1
    layers = trace.n_layers
    nothing = np.full(max(layers - 1, 0), np.nan)
    return Measured(
        overlap=np.array([statistics.overlap(trace, lag) for lag in LAGS]),
        spread=statistics.sequence_spread(trace) if several else np.full(layers, np.nan),
        recall=statistics.next_layer_recall(trace)[0] if several else nothing,
        far_recall=float(statistics.next_layer_recall(trace, ahead=layers // 2)[0].mean()) if several and layers > 3 else np.nan,
        lift=lift, expected=expected,
    )


def sample_like(parameters: Parameters, trace: Trace, sequences: Sequences, *, seed: int) -> Trace:
    """Sampled choices for the sequences of a trace: same lengths, same domains, same layers and experts."""
    process = Process(
        parameters, n_layers=trace.n_layers, n_experts=trace.n_experts, top_k=trace.top_k, seed=seed
    )
    pieces = Pieces(
        key=process.keys(np.arange(sequences.number.size)), domain=sequences.domain,
        skip=np.zeros_like(sequences.length), count=sequences.length,
    )
    order = np.lexsort((trace.pos, trace.seq))
    ids, weights = np.empty_like(trace.expert_ids), np.empty(trace.expert_ids.shape, np.float32)
    for layer in range(trace.n_layers):
        ids[order, layer], weights[order, layer] = process.choose(layer, pieces)
    return replace(trace, expert_ids=ids, gate_weights=weights, scores=None)


# ---- one round


def _moved(parameters: Parameters, real: Measured, sampled: Measured, chance: Floats, turn: int) -> Parameters:
    """The parameters, moved by what the sampled statistics miss; by less in later rounds."""
    gain = max(0.3, 1 / (1 + 0.25 * turn))
    lift = statistics.lift_p99(real.lift, real.expected, sampled.expected)
    found = statistics.lift_p99(sampled.lift, real.expected, sampled.expected)
    dimension = parameters.dimension * np.nan_to_num((found - 1) / (lift - 1), nan=1.0).clip(0.5, 2.0) ** gain
    topic = parameters.topic * np.nan_to_num(real.spread / sampled.spread, nan=1.0).clip(0.5, 2.0) ** (4 * gain)
    parameters = replace(parameters, dimension=dimension.clip(2.0, MOST_DIMENSIONS / 2), topic=topic.clip(0.001, 0.8))
    parameters = _remembering(parameters, _wanted(parameters, real, sampled, chance, gain), free=1 < turn < 6)
    alignment = parameters.alignment.copy()
    alignment[1:] += np.nan_to_num(2.5 * gain * (real.recall - sampled.recall))
    turned = parameters.turn + np.nan_to_num(2 * gain * (sampled.far_recall - real.far_recall))
    return replace(parameters, alignment=alignment.clip(0.0, 0.995), turn=float(np.clip(turned, 0.0, np.pi / 2)))


def _wanted(parameters: Parameters, real: Measured, sampled: Measured, chance: Floats, gain: float) -> Floats:
    """Correlation of two tokens' latent vectors, [lags, layers], that would give the overlaps of the trace: what there is now,
    times how much more than by chance the tokens share in the trace than in the sample. NaN where the trace cannot tell."""
    now = np.array([_correlation(parameters, lag) for lag in LAGS])
    more, less = (np.maximum(part.overlap - chance, 0.003) for part in (real, sampled))
    return np.asarray(now * (more / less) ** gain, np.float64)


def _remembering(parameters: Parameters, wanted: Floats, *, free: bool) -> Parameters:
    """The parameters with loadings of the memories that give the wanted correlations at the two lags that they answer for.

    free: also choose how long the memories are, for all layers together, by the other lags.
    """
    topic = parameters.topic
    wanted = ((wanted - topic) / (1 - topic)).clip(0.0, 0.95)
    choices = [(parameters.fast_memory, parameters.slow_memory)]
    if free:
        choices = [(fast, slow) for fast in FAST for slow in SLOW]
    best, least = parameters, np.inf
    for fast_memory, slow_memory in choices:
        one = replace(parameters, fast_memory=fast_memory, slow_memory=slow_memory)
        fast, slow = _loadings(one, wanted[LAGS.index(NEAR)], wanted[LAGS.index(FAR)])
        one = replace(one, fast=fast, slow=slow)
        misses = [np.nanmean((_memory(one, lag) - wanted[i]) ** 2) for i, lag in enumerate(LAGS) if not np.isnan(wanted[i]).all()]
        if sum(misses) < least:
            best, least = one, sum(misses)
    return best


def _loadings(parameters: Parameters, near: Floats, far: Floats) -> tuple[Floats, Floats]:
    """fast and slow, [layers], whose memory correlations are nearest to `near` and `far`; kept where the trace cannot tell."""
    fast, slow = (side.ravel() for side in np.meshgrid(LOADINGS, LOADINGS, indexing="ij"))
    possible = fast**2 + slow**2 + 2 * fast * slow * parameters.memory_correlation <= 1
    grid = replace(parameters, fast=fast[possible], slow=slow[possible])
    at_near, at_far = _memory(grid, NEAR), _memory(grid, FAR)
    known = ~np.isnan(near)
    found = (parameters.fast.copy(), parameters.slow.copy())
    for layer in np.flatnonzero(known):
        miss = (at_near - near[layer]) ** 2
        if not np.isnan(far[layer]):
            miss = miss + 4 * (at_far - far[layer]) ** 2        # a plateau lasts: it counts for many lags
        best = int(miss.argmin())
        found[0][layer], found[1][layer] = grid.fast[best], grid.slow[best]
    return found


def _correlation(parameters: Parameters, lag: int) -> Floats:
    """Of the latent vectors of two tokens of a sequence, `lag` apart, [layers]."""
    return np.asarray(parameters.topic + (1 - parameters.topic) * _memory(parameters, lag), np.float64)


def _memory(parameters: Parameters, lag: int) -> Floats:
    """The part of it beside the topic: of own x + fast y + slow z, where y and z are memories of the x before."""
    f, s = parameters.fast_memory, parameters.slow_memory
    fast, slow, common = parameters.fast, parameters.slow, parameters.memory_correlation
    echo = fast * np.sqrt(1 - f * f) * f ** (lag - 1) + slow * np.sqrt(1 - s * s) * s ** (lag - 1)
    lasting = fast * (fast + slow * common) * f**lag + slow * (slow + fast * common) * s**lag
    return np.asarray(parameters.own * echo + lasting, np.float64)


# ---- before and after


def _start(trace: Trace, domains: tuple[Domain, ...], real: Measured) -> tuple[Parameters, tuple[str, ...]]:
    """Where the fit begins: loads as counted, the rest as in the moderate preset, with notes on what will stay so."""
    start = load_parameters("moderate")
    layers = trace.n_layers
    notes = []
    if np.isnan(real.overlap[LAGS.index(NEAR)]).all():
        notes.append("no sequence has two tokens in a row: memories are those of the preset moderate")
    if np.isnan(real.spread).all():
        notes.append("there is one sequence: topic, alignment and turn are those of the preset moderate")
    if layers == 1:
        notes.append("there is one layer: alignment and turn are those of the preset moderate")
    if np.isnan(statistics.lift_p99(real.lift, real.expected)).all():
        notes.append("no two experts are expected together 50 times: the dimension is that of the preset moderate")
    if [domain.name for domain in domains] == [UNNAMED]:
        notes.append("domains are not named: one for all sequences")
    if trace.gate_weights is None:
        notes.append("gate weights were not recorded: the sharpness is that of the preset moderate")
    spread = np.ones(layers)
    keys = ("dimension", "topic", "fast", "slow", "alignment")
    return replace(
        start, name="fitted", domains=domains, **{key: getattr(start, key)[0] * spread for key in keys},
    ), tuple(notes)


def _domains(trace: Trace) -> tuple[tuple[Domain, ...], tuple[str, ...]]:
    """The domains of a trace with the loads that were counted, and their names."""
    sequences = sequences_of(trace)
    of_token = sequences.domain[np.searchsorted(sequences.number, trace.seq)]
    n, counts = trace.n_experts, np.empty((len(sequences.names), trace.n_layers, trace.n_experts), np.int64)
    for layer in range(trace.n_layers):
        ids = trace.expert_ids[:, layer].astype(np.int64)
        at = of_token[:, None] * (n + 1) + np.where(ids < 0, n, ids)
        counts[:, layer] = np.bincount(at.ravel(), minlength=len(counts) * (n + 1)).reshape(-1, n + 1)[:, :n]
    return _sharing(counted_domain(name, own) for name, own in zip(sequences.names, counts, strict=True)), sequences.names


def counted_domain(name: str, counts: Ints) -> Domain:
    """A domain with the loads that were counted, int [layers, experts], and the Dirichlet that is as uneven. Its share is by
    tokens: sampled sequences are all of one length."""
    load = (counts + 0.5) / (counts + 0.5).sum(1, keepdims=True)       # an expert that was never seen may still be used
    cv = load.std(1) / load.mean(1)
    spread = np.array([concentration(float(one), counts.shape[1]) for one in cv])
    return Domain(name=name, share=float(counts[0].sum()), spread=spread, load=load)


def _sharing(domains: Iterable[Domain]) -> tuple[Domain, ...]:
    """The domains with shares that sum to 1."""
    all_of_them = list(domains)
    total = sum(domain.share for domain in all_of_them)
    return tuple(replace(domain, share=domain.share / total) for domain in all_of_them)


def _chance(parameters: Parameters, sequences: Sequences, top_k: int) -> Floats:
    """Overlap of independent tokens of the same domain, [layers], mean over the tokens."""
    weight = np.bincount(sequences.domain, sequences.length, minlength=len(parameters.domains))
    each = np.array([
        [(inclusion(row, top_k) ** 2).sum() / top_k for row in domain.load] for domain in parameters.domains
        if domain.load is not None
    ])  # fmt: skip
    return np.asarray((each * weight[:, None]).sum(0) / weight.sum(), np.float64)


def _sharpened(parameters: Parameters, trace: Trace, sequences: Sequences, seed: int) -> Parameters:
    """The parameters with the sharpness that gives the largest gate weight of a token the share it has in the trace."""
    if trace.gate_weights is None:
        return parameters
    recorded = np.abs(trace.gate_weights)
    real = float((recorded.max(2) / np.maximum(recorded.sum(2), 1e-12)).mean())
    sampled = sample_like(replace(parameters, sharpness=1.0), trace, sequences, seed=seed)
    assert sampled.gate_weights is not None
    logits = np.log(np.maximum(sampled.gate_weights[:: max(1, trace.n_tokens // 4096)], 1e-30))
    low, high = 0.0, 50.0
    for _ in range(40):
        middle = (low + high) / 2
        odds = np.exp(middle * (logits - logits.max(2, keepdims=True)))
        low, high = (middle, high) if float((1 / odds.sum(2)).mean()) < real else (low, middle)
    return replace(parameters, sharpness=(low + high) / 2)


def fit_counts(counts: Counts) -> tuple[Parameters, tuple[str, ...]]:
    """Parameters from counts alone: loads by layer and domain; everything else as in the moderate preset, as the notes say."""
    start = load_parameters("moderate")
    domains = _sharing(counted_domain(name or UNNAMED, choices) for name, choices in counts.choices.items())
    layers = len(counts.layers)
    notes = (
        "counts do not tell how tokens hang together: dimension, topic, memories, alignment, turn and sharpness are those of the "
        "preset moderate",
        f"loads are of {layers} layers ({', '.join(map(str, counts.layers))}): a model of another number of layers gets loads "
        "drawn anew, as unevenly",
    )
    return replace(start, name="fitted", domains=domains), notes
