"""Nexus side, before each provider call: limits and budgets, shared by all workers."""
