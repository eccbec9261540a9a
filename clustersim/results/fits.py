"""How good a fit is, for a person: a table, built and not printed."""

from __future__ import annotations

from rich.table import Table

from clustersim.workload.fit_score import Score


def score_table(scores: dict[str, list[Score]], seeds: int) -> Table:
    """One row for each trace and statistic."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("trace", "statistic", "held out", "sampled", "worst", "limit", "real 70/30", ""):
        table.add_column(heading, justify="left" if heading in ("trace", "statistic", "") else "right", no_wrap=True)
    for name, rows in scores.items():
        for i, row in enumerate(rows):
            table.add_row(
                name if i == 0 else "", row.statistic, f"{row.value:.3f}", f"{row.sampled:.3f}", f"{row.worst:.3f}",
                f"{row.limit:.2f}", f"{row.real:.3f}", row.verdict,
            )  # fmt: skip
    table.caption = (
        f"held out: the statistic of 30 % of the sequences, mean over layers and {seeds} splits\n"
        "sampled: how far from it tokens are that were sampled with what was fitted to the\n"
        "other 70 %: mean over layers of the absolute difference (of the lift: relative),\n"
        "mean and worst over the splits; real 70/30: the same between the trace's own parts"
    )
    table.caption_justify = "left"
    return table
