"""Beside the way of a request: what one can see of it from outside, in the terminal and by Prometheus."""
