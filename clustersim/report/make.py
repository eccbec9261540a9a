"""Write a report: read a folder, draw its figures, put them on a page, and on request into files of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clustersim.report.findings import findings_of_run
from clustersim.report.paper import write_pdf
from clustersim.report.reading import RunData, newest_results, read_results
from clustersim.report.run_figures import figures_of_run
from clustersim.report.run_page import page_of_run
from clustersim.report.shapes import Figure
from clustersim.report.svg import svg_file
from clustersim.report.sweep_figures import figures_of_sweep
from clustersim.report.sweep_findings import findings_of_sweep
from clustersim.report.sweep_page import page_of_sweep
from clustersim.report.training_figures import figures_of_training
from clustersim.report.training_findings import findings_of_training
from clustersim.report.training_page import page_of_training
from clustersim.types import InputError
from clustersim.writing import replacing

__all__ = ["newest_results", "write_report"]
PAPER = 680  # pixels that a figure of its own is drawn for: text of 11 of them is 8 points over a page's width


def write_report(
    folder: Path, file: Path | None = None, formats: Sequence[str] = (), *, everything: bool = False
) -> tuple[str, list[Path]]:
    """Write the report of a run or a sweep; its headline, and the files that were written, the page first.

    Args:
        folder: of a run, of a study, or of many; or the `sweep-ID.json` of a sweep.
        file: of the page; left out: `report.html` in the folder.
        formats: of `svg` and `pdf`; every figure is written as such too, into `figures` beside the page.
        everything: all runs below the folder, not only those of its last sweep.

    Raises:
        InputError: no results there, a file that cannot be written, pdf without matplotlib.
    """
    results = read_results(folder, everything=everything)
    if isinstance(results, RunData) and results.trained:
        figures = figures_of_training(results)
        text, headline = page_of_training(results, figures), findings_of_training(results).headline
    elif isinstance(results, RunData):
        figures = figures_of_run(results)
        text, headline = page_of_run(results, figures), findings_of_run(results).headline
    else:
        figures = figures_of_sweep(results)
        text, headline = page_of_sweep(results, figures), findings_of_sweep(results).headline
    target = file or (folder.with_suffix(".html") if folder.is_file() else folder / "report.html")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return headline, [target, *_write_figures(figures, target.parent / "figures", formats)]
    except OSError as error:
        raise InputError(f"report: {target} cannot be written ({error.strerror})") from error


def _write_figures(figures: Sequence[Figure], folder: Path, formats: Sequence[str]) -> list[Path]:
    written = []
    for figure in figures if formats else ():
        folder.mkdir(exist_ok=True)
        picture = figure.draw(PAPER)
        for suffix in formats:
            path = folder / f"{figure.name}.{suffix}"
            with replacing(path) as temporary:
                if suffix == "pdf":
                    write_pdf(picture, temporary)
                else:
                    temporary.write_text(svg_file(picture), encoding="utf-8")
            written.append(path)
    return written
