"""report.png of a run, health.png and sources.png: what a model card or a talk shows."""

from __future__ import annotations

from yupana.report.read import RunRecord


def write_pictures(record: RunRecord) -> None:
    """Write the pictures of a run into it, where matplotlib is installed."""
    try:
        from matplotlib import rc_context
    except ImportError:
        return
    from yupana.report.by_source import draw_sources
    from yupana.report.foretold import foretold
    from yupana.report.health import draw_health
    from yupana.report.mfu_plots import save_png
    from yupana.report.plots import draw

    with rc_context({"font.size": 10}):
        save_png(draw(record, foretold(record)), record.path / "report.png")
        if record.health:
            save_png(draw_health(record), record.path / "health.png")
        if any("val_by_source" in evaluation for evaluation in record.evaluations):
            save_png(draw_sources(record), record.path / "sources.png")
