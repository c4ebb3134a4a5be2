"""Regression: a number for an image, from a column of the case table."""
