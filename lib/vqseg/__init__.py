"""VQ-Seg: semi-supervised segmentation with a quantised perturbation of codebook indices.

The method is that of Yang, Xing and Zhu, "VQ-Seg" (NeurIPS 2025, arXiv 2601.10124), written anew.
"""

__version__ = "0.1.0"
