"""Encoders: trained hash functions as one ONNX file each, which runs without torch."""

from __future__ import annotations

from hashgym.encoders.encoder import Encoder, load_encoder

__all__ = ["Encoder", "load_encoder"]
