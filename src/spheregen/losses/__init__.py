"""What training minimises; each loss returns its named terms."""
