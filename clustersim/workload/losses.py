"""Auxiliary losses of router training as measures of balance, coefficient 1. They measure choices; they change none.

Values of different papers are only comparable after a look at what they are at perfect balance: it is said for each.
Arguments throughout: scores float [tokens, experts], before softmax or sigmoid; ids int [tokens, k], -1 no expert.
"""

from __future__ import annotations

import math

import numpy as np

from clustersim.types import Floats, Ints
from clustersim.workload.routers.activation import Scores, activated


def switch_loss(scores: Scores, ids: Ints) -> float:
    """E · sum of f P: f an expert's share of all choices, P its mean softmax. 1 at balance, whatever k.

    Source: Switch Transformer (arXiv 2101.03961), equation 4; Megatron-LM, moe_utils.py. Mixtral in transformers gives k
    times this.
    """
    return _product(_shares(ids, scores.shape[1]), _softmax(scores).mean(axis=0))


def gshard_loss(scores: Scores, ids: Ints) -> float:
    """E · sum of f P with f from first choices alone. 1 at balance.

    Source: GShard (arXiv 2006.16668); DeepSpeed `top2gating`; Tutel `gshard_loss`.
    """
    return switch_loss(scores, ids[:, :1])


def sequence_loss(scores: Scores, ids: Ints, sequence: Ints) -> float:
    """Mean of the sequences' own `switch_loss`: balance within each. 1 where every sequence is balanced.

    Args:
        sequence: int [tokens], 0, 1, 2, ..., the token's sequence.

    Source: Megatron-LM, router.py (`moe_router_load_balancing_type=seq_aux_loss`).
    """
    return float(np.mean([switch_loss(scores[sequence == s], ids[sequence == s]) for s in np.unique(sequence)]))


def global_batch_loss(scores: Scores, ids: Ints, micro_batch: Ints) -> float:
    """Mean over micro-batches of E · sum of f P, f over all of them, P of each. 1 at balance of the whole.

    Where micro-batches have equally many tokens it is `switch_loss` of all tokens together.

    Args:
        micro_batch: int [tokens].

    Source: Qiu et al. 2025, "Demons in the Detail" (arXiv 2501.11873).
    """
    shares = _shares(ids, scores.shape[1])
    values = _softmax(scores)
    return float(np.mean([_product(shares, values[micro_batch == m].mean(axis=0)) for m in np.unique(micro_batch)]))


def deepseek_v2_losses(scores: Scores, ids: Ints, device: Ints, most_devices: int) -> tuple[float, float, float]:
    """(expert, device, communication) balance losses of DeepSeek-V2. 1 at balance for the first two.

    The second takes devices for experts: the mean f of a device times the sum of its P. In the third f is a device's
    share of tokens that are sent to it, over most_devices / devices.

    Args:
        device: int [experts], device that holds the expert.
        most_devices: devices that a token may be sent to.

    Source: DeepSeek-V2 (arXiv 2405.04434), equations 23 to 31.
    """
    n_tokens, n_experts = scores.shape
    n_devices = int(device.max()) + 1
    shares = _shares(ids, n_experts) * n_experts
    values = _softmax(scores).mean(axis=0)
    on_device = np.bincount(device, values, n_devices)
    mean_share = np.bincount(device, shares, n_devices) / np.bincount(device, minlength=n_devices)
    sent = np.zeros((n_tokens, n_devices + 1), bool)
    np.put_along_axis(sent, np.where(ids >= 0, device[ids], n_devices), True, axis=1)
    arrived = sent[:, :n_devices].mean(axis=0) * n_devices / most_devices
    return float(shares @ values), float(mean_share @ on_device), float(arrived @ on_device)


def deepseek_v3_sequence_loss(scores: Scores, sequence: Ints, k: int) -> float:
    """Mean over sequences of E · sum of f P: P of sigmoids over their sum, f of the k largest of them, no bias. 1 at balance.

    Source: DeepSeek-V3 (arXiv 2412.19437), equations 17 to 20.
    """
    sigmoid = np.asarray(activated(np.asarray(scores, np.float64), "sigmoid"))
    ids = np.argsort(-sigmoid, axis=1, kind="stable")[:, :k]
    values = sigmoid / sigmoid.sum(axis=1, keepdims=True)
    each = [
        _product(_shares(ids[sequence == s], scores.shape[1]), values[sequence == s].mean(axis=0)) for s in np.unique(sequence)
    ]
    return float(np.mean(each))


def z_loss(scores: Scores) -> float:
    """Mean over tokens of the square of log sum exp of the scores: how large they have grown.

    Source: ST-MoE (arXiv 2202.08906), equation 5.
    """
    logits = np.asarray(scores, np.float64)
    top = logits.max(axis=1)
    return float(np.mean((top + np.log(np.exp(logits - top[:, None]).sum(axis=1))) ** 2))


def importance_loss(scores: Scores) -> float:
    """Squared coefficient of variation (sample variance) of the experts' summed softmax. 0 at balance.

    Source: Shazeer et al. 2017 (arXiv 1701.06538), equations 6 and 7.
    """
    return _cv_squared(_softmax(scores).sum(axis=0))


def load_loss(chances: Floats) -> float:
    """The same of the experts' summed chances to be among the top k under new noise (`noisy_chances`). 0 at balance.

    Source: Shazeer et al. 2017 (arXiv 1701.06538), appendix A.
    """
    return _cv_squared(chances.sum(axis=0))


def noisy_chances(scores: Scores, noisy: Scores, noise: Floats | float, k: int) -> Floats:
    """Probability of every expert to be among the token's top k if only its own noise were drawn anew: float [tokens, experts].

    Args:
        noisy: the scores with the noise that was drawn; k is below the number of experts.
        noise: its standard deviation.

    Source: Shazeer et al. 2017 (arXiv 1701.06538), appendix A; davidmrau/mixture-of-experts, moe.py.
    """
    falling = -np.sort(-np.asarray(noisy, np.float64), axis=1)
    last, beaten = falling[:, k - 1 : k], falling[:, k : k + 1]
    bar = np.where(noisy > beaten, beaten, last)        # the k-th largest of the others
    return np.asarray(_normal_cdf((np.asarray(scores, np.float64) - bar) / noise))


def relu_coefficient(coefficient: float, active: float, k: int, n_experts: int, *, factor: float = 1.2) -> float:
    """ReMoE's next L1 coefficient: up by `factor` while more than k of the experts are active on average, else down.

    Args:
        active: experts per token that are active, on average.

    Source: ReMoE (arXiv 2412.14711), equation 9; thu-ml/ReMoE, training.py.
    """
    return coefficient * factor if 1 - active / n_experts < 1 - k / n_experts else coefficient / factor


def _softmax(scores: Scores) -> Floats:
    return np.asarray(activated(np.asarray(scores, np.float64), "softmax"), np.float64)


def _shares(ids: Ints, n_experts: int) -> Floats:
    """float [experts]: share of all choices."""
    counts = np.bincount(ids[ids >= 0], minlength=n_experts)
    return np.asarray(counts / counts.sum())


def _product(shares: Floats, values: Floats) -> float:
    return float(shares.size * (shares @ values))


def _cv_squared(values: Floats) -> float:
    return float(values.var(ddof=1) / values.mean() ** 2)


_normal_cdf = np.vectorize(lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))), otypes=[np.float64])
