"""What happens around the steps of a training. May import what training may."""
