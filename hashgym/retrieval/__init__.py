"""Measuring retrieval by Hamming distance."""
