"""What comes after training: results, statistics, reports, figures."""

from tricklab.analysis.results import load_csv, load_runs, read_runs

__all__ = ["load_csv", "load_runs", "read_runs"]
