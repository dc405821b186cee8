"""System 1, the Sphere Encoder (Yue et al. 2026, arXiv 2602.15030): a pixel-space autoencoder on the sphere."""
