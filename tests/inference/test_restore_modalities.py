"""One bundle for several modalities: each has its units and its chain, and nothing is guessed."""

import numpy as np
import pytest

from medseq.errors import BundleError, InputError
from medseq.inference.restore import RestorePredictor
from medseq.io.volume import Volume
from tests.inference.memory_sink import MemorySink

CURVE = {"class_path": "medseq.data.transforms_curve.HounsfieldCurve"}
SCALE = {"class_path": "medseq.data.transforms.RobustScale"}
OUT = {"kind": "volume"}


def shared(make, folder, **changes):
    """A bundle for CT in HU, MR, and PET in SUV."""
    units = {"CT": "HU", "PT": "SUVbw"}
    settings = {
        "input": {"kind": "volume", "modality": ["CT", "MR", "PT"], "units": "1", "units_of": units, "channels": 1},
        "preprocess": [SCALE],
        "preprocess_of": {"CT": [CURVE]},
        "output": {"kind": "volume"},
    }
    return make.bundle(folder, modality=("MR",), units="1", **(settings | changes))


def result(bundle, array, modality, units):
    sink = MemorySink()
    RestorePredictor(bundle).predict(Volume.from_array(array, modality=modality, units=units), sink)
    return sink.array()


def test_every_modality_goes_through_its_own_chain(make, tmp_path, rng):
    both = shared(make, tmp_path / "both")
    alone = {
        "CT": make.bundle(
            tmp_path / "ct", modality=("CT",), units="1", input=one("CT", "HU"), preprocess=[CURVE], output=OUT
        ),
        "MR": make.bundle(tmp_path / "mr", modality=("MR",), units="1"),
        "PT": make.bundle(
            tmp_path / "pt", modality=("PT",), units="1", input=one("PT", "SUVbw"), preprocess=[SCALE], output=OUT
        ),
    }
    for modality, units in (("CT", "HU"), ("MR", "1"), ("PT", "SUVbw")):
        array = (50 + 20 * rng.normal(size=(2, 24, 20))).astype(np.float32)
        found = result(both, array, modality, units)
        np.testing.assert_array_equal(found, result(alone[modality], array, modality, units))
        assert not np.array_equal(found, array)


def one(modality, units):
    return {"kind": "volume", "modality": [modality], "units": units, "channels": 1}


def test_units_are_those_of_the_modality(make, tmp_path):
    bundle = shared(make, tmp_path / "both")
    array = np.ones((1, 16, 16), np.float32)
    with pytest.raises(InputError, match=r"found 1, wanted HU"):
        result(bundle, array, "CT", "1")
    with pytest.raises(InputError, match=r"found HU, wanted 1"):
        result(bundle, array, "MR", "HU")


def test_a_class_in_a_modality_s_chain_must_be_trusted_too(make, tmp_path):
    with pytest.raises(BundleError, match="os"):
        shared(make, tmp_path / "bad", preprocess_of={"CT": [{"class_path": "os.system"}]})
    with pytest.raises(BundleError, match="preprocess_of"):
        shared(make, tmp_path / "worse", preprocess_of={"XX": [CURVE]})
