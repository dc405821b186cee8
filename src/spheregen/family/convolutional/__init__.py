"""A convolutional Sphere Encoder: images to one vector on a sphere and back, covered within minutes of training."""
