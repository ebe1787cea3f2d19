"""Readers of datasets, one file each: where images and labels lie, and how they are read."""
