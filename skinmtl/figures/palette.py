"""Colours of figures, told apart with any kind of colour vision."""

# Okabe and Ito's palette without its yellow, which vanishes on white. Told apart with any kind of colour vision.
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"
)  # fmt: skip
CLASS_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, BLACK, SKY)  # by a class's place in the list
GREY = "#767676"
