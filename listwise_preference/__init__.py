"""LPOI: listwise preference optimization for vision-language models (ACL 2025, arXiv:2505.21061).

One folder for each job: ``training`` trains an adapter on preference pairs and ranked images, ``image_lists`` makes the
lists, ``generation`` generates responses to benchmark questions, ``scoring`` scores them, ``probe`` measures whether a
policy looks at the object, ``demo`` shows all of it. ``data`` and ``models`` serve every job. docs/contributing.md has
the layout and the direction of imports.
"""

__version__ = "0.1.0"
