"""The check of a config and the objects built from it. May import runs, distributed and what lies below."""
