"""Indices of binary codes behind one interface, for searching images: brute force, buckets, faiss, Milvus."""

from hashgym.index.base import (
    Index,
    backends,
    check_options,
    foreign,
    load,
    make,
    read_meta,
    register,
    verify,
)

__all__ = ["Index", "backends", "check_options", "foreign", "load", "make", "read_meta", "register", "verify"]
