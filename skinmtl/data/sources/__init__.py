"""Layouts that people have on disk, read into one case table."""

from skinmtl.data.sources.cases import COLUMNS, is_leaky, read
from skinmtl.data.sources.ham10000 import DX
from skinmtl.data.sources.layouts import Layout, recognise

__all__ = ["COLUMNS", "DX", "Layout", "is_leaky", "read", "recognise"]
