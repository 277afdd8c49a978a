"""`pgnexus top`: what happens now, in the terminal."""
