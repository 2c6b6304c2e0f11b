"""From verdicts to scores: estimates, intervals, comparisons and the results file."""
