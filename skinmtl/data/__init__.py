"""From files to batches: sources, splits, images, transforms, samplers, the data module."""
