"""The parts of the network, one concept a file; `vqseg.py` puts them together."""
