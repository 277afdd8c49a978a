"""Flows built at run time out of a description, within limits."""
