"""From an image to logits by task name. May import balancing, config, runs, distributed and what lies below."""
