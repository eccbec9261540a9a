"""The shipped trace is what its README says."""

import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from clustersim.workload.statistics import chance_overlap, load_cv, membership, next_layer_recall, overlap, rows_of
from clustersim.workload.trace import read_trace
from clustersim.workload.trace_rules import take

FOLDER = Path(str(resources.files("clustersim.workload"))) / "data" / "tiny"


@pytest.fixture(scope="module")
def trace():
    return read_trace(FOLDER)


def readme_number(row, column):
    """The number in a table of the README, by the first cell of its row and the head of its column."""
    lines = [line.split("|")[1:-1] for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines]
    head = next(line for line in cells if column in line)
    return float(next(line for line in cells if line[0] == row)[head.index(column)])


def test_it_holds_192_sequences_of_128_half_of_each_domain(trace):
    assert trace.expert_ids.shape == (24_576, 6, 4)
    assert trace.n_experts == 32
    np.testing.assert_array_equal(trace.seq, np.repeat(np.arange(192), 128))
    np.testing.assert_array_equal(trace.pos, np.tile(np.arange(128), 192))
    assert trace.domain == {i: "code" if i < 96 else "prose" for i in range(192)}
    assert trace.scores is None


def test_it_is_under_2_megabytes():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 2_000_000


def test_the_weights_are_a_softmax_over_the_chosen_in_descending_order(trace):
    """float16: four rounded weights sum to 1 within 4 * 2^-12."""
    np.testing.assert_allclose(trace.gate_weights.sum(2), 1, atol=4 * 2**-12)
    assert (np.diff(trace.gate_weights, axis=2) <= 0).all()
    assert (trace.expert_ids >= 0).all()


def test_every_expert_of_every_layer_is_used_by_both_domains(trace):
    """None is dead: an even share is 4/32 of the tokens; the least used expert has at least a twentieth of that overall."""
    used = membership(trace.expert_ids, 32)
    assert used.mean(0).min() >= 0.05 * 4 / 32
    for domain in ("code", "prose"):
        assert used[rows_of(trace, domain)].any(0).all()


@pytest.mark.parametrize("domain", ["code", "prose", "both"])
def test_its_statistics_are_those_in_the_readme(trace, domain):
    """Printed with three decimals."""
    part = trace if domain == "both" else take(trace, rows_of(trace, domain))
    recall, by_popularity = (found.mean() for found in next_layer_recall(part))
    measured = {
        "load CV": load_cv(part.expert_ids, 32).mean(), "by chance": chance_overlap(part).mean(), "recall": recall,
        "by popularity": by_popularity, **{f"overlap {lag}": overlap(part, lag).mean() for lag in (1, 8, 64)},
    }
    for column, value in measured.items():
        assert value == pytest.approx(readme_number(domain, column), abs=6e-4), column


def test_the_domains_differ_more_than_their_mixture(trace):
    """A router that has learnt anything sends code and prose to different experts; mixing them evens the load out."""
    alone = [load_cv(trace.expert_ids[rows_of(trace, domain)], 32).mean() for domain in ("code", "prose")]
    assert min(alone) > load_cv(trace.expert_ids, 32).mean()


def test_its_provenance_is_in_the_file_and_in_the_readme(trace):
    readme = (FOLDER / "README.md").read_text()
    made, training = trace.meta["made_with"], trace.meta["training"]
    for value in (made["python"], made["torch"], f"{training['steps']} steps", "clustersim capture tiny"):
        assert value in readme
    for domain, loss in training["held_out_loss_nats"].items():
        assert re.search(rf"{loss:.2f} nats .*{domain}", readme)
        assert len(trace.meta["text"]["held_out_documents"][domain]) >= 96 / 8
    assert trace.meta["license"] == "Apache-2.0"
