"""Annotation replayed on a pool whose labels are all known: which strategy teaches the model most, and at what cost."""
