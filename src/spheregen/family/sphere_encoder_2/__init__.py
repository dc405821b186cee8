"""System 4, Sphere Encoder 2 (arXiv 2610.02208): a decoder that is told the angle of the noise, up to pure noise."""
