"""What is set aside for calls, what they used, and what becomes of the calls of the dead."""
