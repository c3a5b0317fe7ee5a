"""The embedded handwritten digits: 1797 images of 8x8 pixels from 0 to 16; licence in digits/NOTE.txt."""

from pathlib import Path
from typing import ClassVar

import numpy as np

from refimpl.data.dataset import DataSet
from refimpl.data.idx import parse_idx
from refimpl.data.places import Found
from refimpl.data.source import About, DataSource, Form
from refimpl.registry import DATASETS


@DATASETS.register("digits")
class Digits(DataSource):
    """Images (1797, 1, 8, 8) with labels from 0 to 9, in the published order.

    Source: Alpaydin & Kaynak 1998, UCI Machine Learning Repository; see NOTE.txt.
    """

    about = About(
        1797, 0, (1, 8, 8), 10, "CC BY 4.0", "E. Alpaydin, C. Kaynak, UCI Machine Learning Repository, 1998"
    )
    home = Path(__file__).parent.parent
    forms = (Form(("digits",), ("images-idx", "labels-idx")),)
    contents: ClassVar = {
        "images-idx": "a5adabccf8d3e2540826a202a7bfb422",
        "labels-idx": "497796a0698e25d3920a9422b635bf34",
    }
    sizes = (48, 76)  # ours

    def read(self, found: Found) -> DataSet:
        """The digits. No normalising constants are published: these are round, and not fitted to the data."""
        (images, labels) = (
            parse_idx(data, where, 3 if "images" in file else 1) for file, where, data in found.contents()
        )
        return DataSet(
            self.name,
            images[:, None],
            labels.astype(np.int64),
            tuple(map(str, range(10))),
            scale=16.0,
            mean=(0.3,),
            std=(0.4,),
            n_train=len(labels),
            note="8x8 digits of the UCI repository (its test part of 1797 images), embedded in the package",
        )
