"""The colours and dashes of all plots: told apart under every kind of colour blindness (Okabe and Ito 2008)."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
"""For lines beyond the number of colours."""
