"""Triton kernels of the encoder, forward only: patch embedding of a 3D grid, its tissue, and attention.

``ops`` gives them to PyTorch, ``aot`` compiles them for machines that are not here, ``bundle`` writes what a runtime
needs to launch them. Importing this package imports neither PyTorch nor Triton.
"""
