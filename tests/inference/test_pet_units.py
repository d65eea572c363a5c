"""A model for SUV on a series in Bq/ml: the header's factor goes in, and Bq/ml comes out."""

import numpy as np
import pytest

from medseq.errors import InputError
from medseq.inference.restore import RestorePredictor
from medseq.io.pet_suv import suv_per_activity
from medseq.io.volume import Volume
from tests.inference.memory_sink import MemorySink
from tests.io.test_pet_suv import opened, pet


@pytest.fixture
def suv_bundle(make, tmp_path):
    return make.bundle(
        tmp_path / "tiny-pet",
        modality=("PT",),
        units="1",
        input={"kind": "volume", "modality": ["PT"], "units": "SUVbw", "channels": 1},
        preprocess=[{"class_path": "medseq.data.transforms.Identity"}],
        output={"kind": "volume", "units": "SUVbw"},
        valid_range={"min": 0, "max": 20},
    )


def test_the_model_sees_suv_and_the_result_is_activity(suv_bundle, seed, tmp_path):
    reader = opened(pet(seed), tmp_path / "series")
    sink = MemorySink()
    prediction = RestorePredictor(suv_bundle, strength=0.0).predict(reader, sink)
    # Strength 0 is the input: float32 rounding of one product and one quotient.
    np.testing.assert_allclose(sink.array(), reader.read(0, 4), rtol=1e-6)
    suv = reader.read(0, 4) * suv_per_activity(reader.header)
    assert prediction.metrics["out_of_range"] == pytest.approx((suv > 20).mean())


def test_a_series_without_the_tags_and_a_file_without_a_header_are_refused(suv_bundle, seed, tmp_path):
    reader = opened(pet(seed, PatientWeight=None), tmp_path / "series")
    with pytest.raises(InputError, match=r"found PatientWeight"):
        RestorePredictor(suv_bundle).predict(reader, MemorySink())
    volume = Volume.from_array(np.ones((1, 9, 9), np.float32), modality="PT", units="Bq/ml")
    with pytest.raises(InputError, match=r"units do not fit the bundle \(found Bq/ml, wanted SUVbw"):
        RestorePredictor(suv_bundle).predict(volume, MemorySink())
