"""All other wires, through any-llm-sdk; nothing of it is imported before its first call."""
