"""Runs as a table, their statistics, reports and figures."""

from tricklab.analysis.results import load_runs, read_runs

__all__ = ["load_runs", "read_runs"]
