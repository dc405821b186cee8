"""System 2, the Sphere Latent Encoder (Do et al. 2026, arXiv 2605.15592): denoising on a frozen tokenizer's sphere."""
