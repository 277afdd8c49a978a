"""`pgnexus flow`: flows and runs listed, drawn, started, followed and steered from the terminal."""
