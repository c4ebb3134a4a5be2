"""Classification: one of several classes for an image, from a column of the case table."""
