"""Search engines for binary codes behind one interface: brute force, buckets, faiss, Milvus."""

from hashgym.index.base import Index, backends, check_options, foreign, load, make, read_meta, verify

__all__ = ["Index", "backends", "check_options", "foreign", "load", "make", "read_meta", "verify"]
