"""The report of a journey: one HTML file, made from the stages' records alone."""

from __future__ import annotations

from headwater.report.render import write_report

__all__ = ["write_report"]
