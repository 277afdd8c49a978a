"""pgflow, the workflow engine: its SQL is the engine, what is here calls it."""
