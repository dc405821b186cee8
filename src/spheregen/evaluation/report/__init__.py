"""The page on which an evaluation is read."""
