"""Several seeds as one run: means, intervals that hold what they promise, and the tables beside them."""

import json
import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

import clustersim as cs
from clustersim.cli import main
from clustersim.identity import identify
from clustersim.results.replicates import combined, half_width, student_quantile
from clustersim.types import InputError

SMALL = ["topology.nodes=1", "workload.tokens_per_gpu=16", "model.n_layers=2", "network=bound", "trace=sampled",
    "capacity.factor=1.0"]


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 10, 31, 100])
@pytest.mark.parametrize("share", [0.6, 0.95, 0.975, 0.999])
def test_students_quantile_is_scipys(freedom, share):
    assert student_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-9)


def test_an_interval_holds_the_truth_in_95_of_100_cases():
    """Of normal values the t interval is exact; so the number of hits is binomial."""
    rng, cases = np.random.default_rng(3), 2000
    hits = sum(abs(np.mean(values)) <= half_width(values) for values in rng.normal(size=(cases, 4)).tolist())
    assert abs(hits - 0.95 * cases) <= 4 * math.sqrt(cases * 0.95 * 0.05)


def test_rows_are_combined_by_what_they_hold():
    base = dict.fromkeys(("exposed_comm_s", "tokens_per_s", "drop_rate", "imbalance"), 1.0)
    rows = [
        {**base, "seed": i, "step_s": x, "bottleneck": link, "solves": n, "over_bound": over}
        for i, (x, link, n, over) in enumerate([(1.0, "a", 3, 1.0), (2.0, "b", 4, None), (6.0, "b", 6, 1.0)])
    ]
    together = combined(rows)
    assert (together["seed"], together["step_s"], together["bottleneck"], together["solves"]) == (0, 3.0, "b", 4)
    assert together["over_bound"] is together["over_bound_ci95"] is None
    assert together["step_s_ci95"] == pytest.approx(stats.sem([1, 2, 6]) * stats.t.ppf(0.975, 2))
    assert together["replicates"] == 3
    assert combined(rows[:1])["step_s_ci95"] is None


def test_the_summary_is_the_mean_of_the_seeds_and_the_other_tables_are_of_the_first():
    alone = [cs.simulate([*SMALL, f"seed={seed}"]) for seed in (5, 6, 7)]
    told = []
    together = cs.simulate([*SMALL, "seed=5", "replicates=3"], progress=lambda fraction, what: told.append(fraction))
    for name in ("step_s", "exposed_comm_s", "drop_rate", "nvlink_bytes", "seconds_saved_by_dropping"):
        assert together.summary[name] == pytest.approx(np.mean([run.summary[name] for run in alone]), rel=1e-12), name
    assert together.summary["seed"] == 5
    assert together.tables["replicates"]["step_s"].to_list() == [run.summary["step_s"] for run in alone]
    assert together.tables["replicates"]["seed"].to_list() == [5, 6, 7]
    for name in ("layers", "gpus", "links", "experts"):
        assert together.tables[name].equals(alone[0].tables[name])
    assert together.run_id not in {run.run_id for run in alone}
    assert together.run_id == identify(together.run).run_id
    assert told == sorted(told)
    assert told[-1] == 1
    assert json.dumps(together.summary)


def test_one_seed_has_the_same_columns_and_no_interval():
    one, two = cs.simulate(SMALL), cs.simulate([*SMALL, "replicates=2"])
    assert one.tables["summary"].schema == two.tables["summary"].schema
    assert one.summary["replicates"] == 1
    assert one.tables["summary"]["step_s_ci95"].null_count() == 1
    assert "replicates" not in one.tables


def test_replicates_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*SMALL, "replicates=4"]) == 0
    assert "mean of 4 seeds from 0 on; the mean step is sure to" in " ".join(capsys.readouterr().out.split())
    assert cs.scan("results", "replicates").collect().height == 4
    assert main(["-m", *SMALL, "replicates=3", "workers=0", "placement.slots=32,64"]) == 0
    assert cs.scan("results", "replicates").group_by("run_id").len().collect()["len"].sort().to_list() == [3, 3, 4]
    assert cs.scan("results").filter(pl.col("replicates") == 3).collect()["step_s_ci95"].min() > 0


def test_replicates_are_counted_from_one(tmp_path):
    with pytest.raises(InputError, match="replicates=0: must be a whole number from 1 up"):
        cs.simulate([*SMALL, "replicates=0"])
    cs.simulate([*SMALL, f"output={tmp_path}"]).save()
    with pytest.raises(InputError, match="no run there has a table replicates"):
        cs.scan(tmp_path, "replicates")
