"""`python -m pgnexus` is the command `pgnexus`."""

from pgnexus.cli import main

main()
