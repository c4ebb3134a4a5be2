"""One training, from a config to a run folder. May import evaluation, reports and what lies below."""
