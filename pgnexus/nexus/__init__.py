"""Nexus side: takes requests from the lanes, runs them, publishes their results. Holds the provider keys."""
