"""Balance of tasks and classes: weights of losses, gradients per task. May import distributed, errors, types."""
