"""Studies of one setting against another: train each combination, score all alike, tell in one table."""
