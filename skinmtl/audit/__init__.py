"""Leaks in a data set: near-duplicate images, lesions under two ids, torn splits. May import data and below."""
