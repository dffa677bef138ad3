"""The report of a run: one HTML file that judges it."""

from finetune.tracking.report.writing import write_report

__all__ = ["write_report"]
