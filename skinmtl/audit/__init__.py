"""Leaks in a data set: near-duplicate images, lesions under two ids or in two splits. May import data and below."""
