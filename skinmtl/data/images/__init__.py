"""Image and mask files, decoded in one place. May import data.mask_classes and what is below data."""
