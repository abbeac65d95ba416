"""What the metrics collector reads from; the path is the one that SAGE knows."""
