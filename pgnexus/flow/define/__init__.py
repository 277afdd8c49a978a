"""Writing flows: steps as functions, and the graph they make."""
