"""Several processes that train one run, and the signals that end them. May import files, terminal, types, errors."""
