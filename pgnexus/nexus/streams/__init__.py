"""Beside `route_llm`: answers into the database while they come."""
