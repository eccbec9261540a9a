"""Bubbles of pipelines with equal stages are the published closed forms; and laws that every order keeps."""

import numpy as np
import pytest

from clustersim.engine import pipelines
from clustersim.engine.pipeline_play import play_pipeline
from clustersim.types import InputError


def flow(order, p, m, f=1.0, i=1.0, w=1.0, virtual=1, together=None):
    """The order played where every stage takes the same: f forward, i + w backward, `together` for two that overlap."""
    pipeline = order(p, m, virtual)
    spent = {"F": f / virtual, "B": (i + w) / virtual, "I": i / virtual, "W": w / virtual}

    def seconds(tasks):
        return spent[tasks[0].kind] if len(tasks) == 1 else (f + i + w if together is None else together)

    return pipeline, play_pipeline(pipeline, seconds)


def bubble(order, p, m, f=1.0, i=1.0, w=1.0, virtual=1, together=None):
    """What the step takes beyond the work of the device that idles longest."""
    return flow(order, p, m, f, i, w, virtual, together)[1].bubble_s.max()


@pytest.mark.parametrize(("order", "virtual", "expected"), [
    (pipelines.one_f_one_b, 1, 9), (pipelines.interleaved, 2, 4.5), (pipelines.zero_bubble, 1, 3),
    (pipelines.zero_bubble_2p, 1, 0), (pipelines.dualpipe, 1, 2),
])  # fmt: skip
def test_the_example_of_four_stages_and_eight_micro_batches(order, virtual, expected):
    played = flow(order, 4, 8, virtual=virtual)[1]
    idle = played.gaps_s if order is pipelines.zero_bubble_2p else played.bubble_s
    assert idle.max() == pytest.approx(expected, abs=1e-9)


TIMES = [(1.0, 1.0, 1.0), (1.0, 1.3, 0.9), (0.7, 1.1, 0.7), (2.0, 2.5, 1.9)]


@pytest.mark.parametrize(("f", "i", "w"), TIMES)
@pytest.mark.parametrize(("p", "m"), [(1, 3), (2, 4), (4, 4), (4, 16), (8, 24)])
def test_one_f_one_b(p, m, f, i, w):
    assert bubble(pipelines.one_f_one_b, p, m, f, i, w) == pytest.approx((p - 1) * (f + i + w), abs=1e-9)


@pytest.mark.parametrize(("f", "i", "w"), TIMES)
@pytest.mark.parametrize(("p", "m", "v"), [(2, 4, 2), (4, 8, 2), (4, 8, 3), (4, 16, 4), (8, 16, 2)])
def test_interleaved(p, m, v, f, i, w):
    # a bubble of p - 1 passes of one chunk either way
    assert bubble(pipelines.interleaved, p, m, f, i, w, virtual=v) == pytest.approx((p - 1) * (f + i + w) / v, abs=1e-9)


@pytest.mark.parametrize(("p", "m", "v"), [(1, 4, 1), (2, 8, 2), (4, 8, 2), (4, 16, 4)])
def test_combined_passes_that_hide_nothing_are_interleaved(p, m, v):
    assert bubble(pipelines.combined, p, m, virtual=v, together=3 / v) == pytest.approx((p - 1) * 3 / v, abs=1e-9)


def test_combined_passes_that_hide_exchanges_save_it_in_every_pair():
    # one device: m + 1 tasks, the first and the last alone
    _, played = flow(pipelines.combined, 1, 6, together=2.2)
    assert played.step_s == pytest.approx(1 + 5 * 2.2 + 2, abs=1e-9)


@pytest.mark.parametrize(("f", "i", "w"), TIMES)
@pytest.mark.parametrize(("p", "m"), [(2, 6), (4, 12), (8, 24)])
def test_zero_bubble(p, m, f, i, w):
    # arXiv 2401.10241 table 2: (p - 1)(F + I - W)
    assert bubble(pipelines.zero_bubble, p, m, f, i, w) == pytest.approx((p - 1) * (f + i - w), abs=1e-9)


@pytest.mark.parametrize(("f", "i", "w"), [(1, 1, 1), (1, 1.3, 0.9), (1, 1.05, 1)])
@pytest.mark.parametrize(("p", "m"), [(2, 6), (4, 12), (8, 24)])
def test_zero_bubble_with_twice_the_activations(p, m, f, i, w):
    # the same table: (p - 1)(F + I - 2W)
    assert flow(pipelines.zero_bubble_2p, p, m, f, i, w)[1].gaps_s.max() == pytest.approx((p - 1) * (f + i - 2 * w), abs=1e-9)


@pytest.mark.parametrize(("f", "i", "w", "together"), [(1, 1, 1, 3), (1.0, 1.0, 0.7, 2.5), (1.0, 1.0, 1.0, 2.2)])
@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 8), (4, 20), (8, 16), (16, 40)])
def test_dualpipe(p, m, f, i, w, together):
    # arXiv 2412.19437 table 2: (p/2 - 1)(F&B + B - 3W), where forward and backward of the activations take the same
    expected = (p / 2 - 1) * (together + i + w - 3 * w)
    assert bubble(pipelines.dualpipe, p, m, f, i, w, together=together) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("order", "p", "m", "v"), [
    (pipelines.one_f_one_b, 4, 6, 1), (pipelines.interleaved, 4, 8, 2), (pipelines.combined, 4, 8, 2),
    (pipelines.zero_bubble, 4, 6, 1),
    (pipelines.zero_bubble_2p, 4, 6, 1), (pipelines.dualpipe, 6, 14, 1),
])  # fmt: skip
def test_every_micro_batch_goes_through_every_stage_once_each_way(order, p, m, v):
    pipeline = order(p, m, v)
    seen = sorted((task.kind, task.stage, task.batch) for device in pipeline.tasks for tasks in device for task in tasks)
    kinds = {kind for kind, _, _ in seen}
    backward = [(s, b) for kind, s, b in seen if kind in "BI"]
    assert sorted(backward) == [(s, b) for s in range(pipeline.stages) for b in range(m)]
    assert [(s, b) for kind, s, b in seen if kind == "F"] == sorted(backward)
    if "I" in kinds:
        assert sorted((s, b) for k, s, b in seen if k == "I") == sorted((s, b) for k, s, b in seen if k == "W")
    for device, held in zip(pipeline.tasks, pipeline.held, strict=True):
        assert {task.stage for tasks in device for task in tasks} == set(held)


@pytest.mark.parametrize("order", [pipelines.one_f_one_b, pipelines.zero_bubble, pipelines.dualpipe])
def test_activations_in_flight(order):
    # one_f_one_b and ZB-H1: p - s on stage s; DualPipe: p + 1 on every device (arXiv 2412.19437 table 2)
    p, m = 8, 24
    for s, device in enumerate(order(p, m).tasks):
        held = most = 0
        for tasks in device:
            held += sum(task.kind == "F" for task in tasks)
            most = max(most, held)
            held -= sum(task.kind in "BI" for task in tasks)
        assert most == (p + 1 if order is pipelines.dualpipe else p - s)


def test_a_slow_stage_holds_up_the_whole_pipeline():
    # m passes through a stage of 3 s each way, and the first and last through the others
    p, m = 4, 16
    slow = {0: 1.0, 1: 1.0, 2: 3.0, 3: 1.0}
    played = play_pipeline(pipelines.one_f_one_b(p, m), lambda tasks: slow[tasks[0].stage] * (2 if tasks[0].kind == "B" else 1))
    assert played.step_s >= m * 9 - 1e-9
    assert np.isclose(played.busy_s, [m * 3, m * 3, m * 9, m * 3]).all()


def test_what_is_sent_takes_its_time_and_nobody_waits_who_need_not():
    # two stages, one micro-batch: forward, send, forward, backward, send, backward
    played = play_pipeline(pipelines.one_f_one_b(2, 1), lambda tasks: 1.0, lambda a, b: 0.25)
    assert played.step_s == pytest.approx(4 + 0.5)


@pytest.mark.parametrize(("order", "p", "m", "v", "said"), [
    (pipelines.interleaved, 4, 6, 2, "nearest that is: 8"),
    (pipelines.dualpipe, 4, 6, 1, "nearest that does: 8 micro-batches on 4 stages"),
    (pipelines.dualpipe, 3, 8, 1, "nearest that does: 8 micro-batches on 4 stages"),
    (pipelines.one_f_one_b, 4, 8, 2, "use parallel.order=interleaved"),
    (pipelines.zero_bubble, 4, 8, 2, "use virtual=1"),
    (pipelines.combined, 4, 8, 1, "use virtual=2 or more"),
])  # fmt: skip
def test_what_cannot_be_is_refused_with_what_can(order, p, m, v, said):
    with pytest.raises(InputError) as caught:
        order(p, m, v)
    assert said in str(caught.value)
