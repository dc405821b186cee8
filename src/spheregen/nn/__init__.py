"""The blocks that models are made of. Shapes: B samples, N tokens, W width, H heads, D channels of a head."""
