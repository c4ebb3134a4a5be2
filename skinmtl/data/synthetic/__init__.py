"""A synthetic HAM10000, drawn by code. May import what data may."""
