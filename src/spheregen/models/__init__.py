"""The generators of the family; each file holds one model and its configuration."""
