"""A run folder as files: record, tables, checkpoints, names of scores. May import figures, files and below."""
