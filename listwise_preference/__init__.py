"""LPOI: listwise preference optimization for vision-language models (ACL 2025, arXiv:2505.21061).

The flow runs one way: ``pairs`` and ``ranked_images`` are data; ``batch`` makes tensors of them; ``models``
loads what is trained; ``completion_logps`` scores, ``losses`` compares, ``trainer`` learns, ``train.main`` puts a
recipe together.
"""

__version__ = "0.1.0"
