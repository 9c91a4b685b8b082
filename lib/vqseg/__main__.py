"""`python -m vqseg` is the command line."""

from vqseg.cli import main

main(prog_name="vqseg")
