"""Preprocessing: a volume in its acquired axes becomes the encoder's grid, in one pass of one serialised DALI graph.

`plan` works out, from the affine and the manifest's spec alone, where every grid voxel lies. The graph that
`build_graph` defines does the arithmetic; `Preprocessor` runs it. The same bytes run from C.
"""

from decipher_rt.preprocess.graph import build_graph
from decipher_rt.preprocess.grid import Grid, GridPlan, plan
from decipher_rt.preprocess.run import Preprocessor, require_same_grid
from decipher_rt.preprocess.slices import SliceResampler

__all__ = ["Grid", "GridPlan", "Preprocessor", "SliceResampler", "build_graph", "plan", "require_same_grid"]
