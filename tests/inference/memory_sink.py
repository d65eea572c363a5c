"""A sink that keeps what a predictor writes."""

import numpy as np


class MemorySink:
    """Keeps what is written."""

    def __init__(self):
        self.planes, self.aborted, self.committed = {}, [], []

    def volume(self, role):
        sink, sink.planes[role] = self, []

        class Writer:
            clipped = 0

            def begin(self, header):
                self.header = header

            def write(self, lo, planes):
                assert lo == sum(len(piece) for piece in sink.planes[role]), "planes must come in order"
                sink.planes[role].append(planes.copy())

            def commit(self):
                sink.committed.append(role)
                return [f"{role}.nii.gz"]

            def abort(self):
                sink.aborted.append(role)

        return Writer()

    def array(self, role="result"):
        return np.concatenate(self.planes[role])
