"""The report of a journey: one HTML file, made from the stages' records alone.

It runs no model and needs no torch, so it can be made again wherever the `stage.json` files lie. A section is a
function from records to facts (`sections.py`) and a template.
"""

from __future__ import annotations

from headwater.report.render import write_report

__all__ = ["write_report"]
