"""What every measurement stands on: databases, child processes, the stub of a vendor, clocks and counters."""
