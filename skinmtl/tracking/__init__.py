"""Loggers beside metrics.csv. May import runs and what lies below."""
