"""What is learned from an image: targets, losses, metrics. May import data, models, losses and what lies below."""
