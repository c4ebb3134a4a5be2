"""Data sets in the layouts that people have, read into one case table. May import data.images and below data."""

from skinmtl.data.sources.cases import COLUMNS, is_leaky, read
from skinmtl.data.sources.ham10000 import DX
from skinmtl.data.sources.layouts import Layout, recognise

__all__ = ["COLUMNS", "DX", "Layout", "is_leaky", "read", "recognise"]
