"""Running tasks: claims, handlers, and what became of them."""
