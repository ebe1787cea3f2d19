"""The registry of hashers; their modules are imported at first use, since most need torch."""

from __future__ import annotations

from typing import Any

from hashgym.registry import Registry

__all__ = ["HASHERS"]

HASHERS: Registry[type[Any]] = Registry(
    "hasher",
    {
        "lsh": ("hashgym.hashers.lsh:LSH", "random hyperplanes (Charikar 2002); learns nothing"),
        "itq": ("hashgym.hashers.itq:ITQ", "PCA and iterative quantisation (Gong and Lazebnik 2011, 2013); no labels"),
        "pca": ("hashgym.hashers.pca:PCA", "principal components under a random rotation; no labels"),
        "sh": (
            "hashgym.hashers.sh:SH",
            "spectral hashing (Weiss 2008): eigenfunctions along principal directions; no labels",
        ),
        "cibhash": ("hashgym.hashers.cibhash:CIBHash", "one hidden layer, two views contrasted (Qiu 2021); no labels"),
        "sdh": ("hashgym.hashers.sdh:SDH", "codes that a linear classifier can read, bit by bit (Shen 2015)"),
        "cnnh": ("hashgym.hashers.cnnh:CNNH", "codes that factorise the similarity matrix, then a network (Xia 2014)"),
        "ninh": ("hashgym.hashers.ninh:NINH", "triplet ranking, each bit from its own slice of the layer (Lai 2015)"),
        "dsh": ("hashgym.hashers.dsh:DSH", "contrastive loss of pairs, outputs drawn to -1 and 1 (Liu 2016)"),
        "csq": ("hashgym.hashers.csq:CSQ", "one hidden layer, codes drawn to centres far from each other (Yuan 2020)"),
        "orthohash": ("hashgym.hashers.orthohash:OrthoHash", "cosine softmax to orthogonal targets (Hoe 2021)"),
        "noseq": ("hashgym.hashers.noseq:NoSeq", "one hidden layer, triplet ranking loss: DRLIH without its agent"),
        "ksh": ("hashgym.hashers.ksh:KSH", "kernels, greedy bit by bit (Liu 2012); base of MCH"),
        "ksh-relaxed": ("hashgym.hashers.ksh:RelaxedKSH", "one hidden layer, KSH's loss of pairs; base of MCH"),
        "hashnet": ("hashgym.hashers.hashnet:HashNet", "one hidden layer, tanh that sharpens (Cao 2017); base of MCH"),
        "adsh": (
            "hashgym.hashers.adsh:ADSH",
            "one hidden layer against learnt database codes (Jiang 2018); base of MCH",
        ),
        "dch": ("hashgym.hashers.dch:DCH", "one hidden layer, Cauchy loss of pairs (Cao 2018); base of MCH"),
        "mmhh": ("hashgym.hashers.mmhh:MMHH", "one hidden layer, Hamming balls with a margin (Kang 2019); base of MCH"),
    },
)
