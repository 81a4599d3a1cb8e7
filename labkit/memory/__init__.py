"""The meters: what a step takes in memory, measured or estimated."""
