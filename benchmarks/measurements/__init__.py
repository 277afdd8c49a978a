"""What is measured of the contestants, one kind a file."""
