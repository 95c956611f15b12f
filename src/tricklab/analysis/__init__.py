"""What comes after training: results, statistics, reports, figures."""
