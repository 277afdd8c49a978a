"""What runs in a peer's own environment: one program a peer, each with the words of `talk`."""
