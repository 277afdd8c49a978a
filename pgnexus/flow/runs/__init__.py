"""The door to runs: start, wait, look, steer."""
