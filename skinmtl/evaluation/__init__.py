"""From a finished run to predictions and scores. May import tasks, data, models and what lies below."""
