"""From files on disk to batches: tables, splits, images, masks, order. May import balancing, config and below."""
