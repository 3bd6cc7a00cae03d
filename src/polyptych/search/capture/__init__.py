"""From a module to a graph: run a backbone once on an example image and record what it computes as a pure graph.

:func:`capture` does this and checks the graph against the module bit for bit; everything else here serves it.
"""

from polyptych.search.capture.capturing import Capture, Closed, capture

__all__ = ["Capture", "Closed", "capture"]
