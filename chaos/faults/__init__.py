"""What goes wrong, one noun a file; each is a `Fault`."""
