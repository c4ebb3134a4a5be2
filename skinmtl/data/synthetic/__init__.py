"""A synthetic data set in HAM10000's layout, rendered by code. May import what is below data alone."""
