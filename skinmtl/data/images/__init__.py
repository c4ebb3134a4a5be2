"""Decoding of images and masks. May import what data may."""
