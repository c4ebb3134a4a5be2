"""Several runs and one answer: sweeps, their jobs, comparisons. May import evaluation and what lies below."""
