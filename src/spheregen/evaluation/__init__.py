"""What a generator costs and how good it is."""
