"""Networks whose features the metrics compare."""
