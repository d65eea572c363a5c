import hashlib
import json
import os
import pickle
import re
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from medseq.errors import BundleError, OutputError
from medseq.inference.bundle import load_bundle
from medseq.inference.bundle_classes import build_class
from medseq.inference.bundle_schema import ClassSpec, parse_yaml, validate_config


def edit_yaml(bundle, change):
    """Rewrite bundle.yaml with a changed mapping."""
    path = bundle.folder / "bundle.yaml"
    config = yaml.safe_load(path.read_text())
    change(config)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return str(bundle.folder)


def test_a_saved_bundle_loads_with_the_same_weights_and_hash(make, tmp_path):
    bundle = make.bundle(tmp_path / "tiny-ct")
    again = load_bundle(str(bundle.folder))
    assert again.hash == bundle.hash
    assert len(again.hash) == 64
    model = again.build_model()
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert again.metadata["intended_use"] == "tests"
    [transform] = again.transforms()
    assert type(transform).__name__ == "HounsfieldChannels"
    text = (bundle.folder / "bundle.yaml").read_bytes()
    weights = (bundle.folder / "model.safetensors").read_bytes()
    parts = hashlib.sha256(text).hexdigest() + hashlib.sha256(weights).hexdigest()
    assert bundle.hash == hashlib.sha256(parts.encode()).hexdigest()


def test_float16_weights_are_half_the_size_and_load_as_float32(make, tmp_path):
    full = make.bundle(tmp_path / "full")
    state = full.build_model().state_dict()
    from medseq.inference.bundle import save_bundle

    config = full.config.model_dump(mode="json", exclude={"weights"}, exclude_none=True) | {"name": "half"}
    half = save_bundle(tmp_path / "half", config, state, metadata={}, card="", dtype="float16")
    sizes = [(b.folder / "model.safetensors").stat().st_size for b in (full, half)]
    assert sizes[1] < 0.75 * sizes[0]
    for key, value in half.build_model().state_dict().items():
        assert value.dtype == torch.float32
        # One rounding to float16: half a unit in the last of 11 bits.
        torch.testing.assert_close(value, state[key], rtol=2**-11, atol=2**-25)


def test_weights_that_overflow_float16_are_refused(make, tmp_path):
    from medseq.inference.bundle import save_bundle

    full = make.bundle(tmp_path / "full")
    state = {key: value * 1e9 for key, value in full.build_model().state_dict().items()}
    config = full.config.model_dump(mode="json", exclude={"weights"}, exclude_none=True)
    with pytest.raises(BundleError, match=r"weights do not fit float16.*store them as float32"):
        save_bundle(tmp_path / "half", config, state, metadata={}, card="", dtype="float16")
    assert not (tmp_path / "half").exists()
    assert not list(tmp_path.glob(".half*"))


def test_building_a_model_leaves_the_random_generator_alone(ct_bundle):
    before = torch.random.get_rng_state()
    ct_bundle.build_model()
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_existing_folder_is_kept_unless_told(make, tmp_path):
    first = make.bundle(tmp_path / "tiny-ct")
    with pytest.raises(OutputError, match="folder exists"):
        make.bundle(tmp_path / "tiny-ct", weights_seed=1)
    assert load_bundle(str(tmp_path / "tiny-ct")).hash == first.hash


@pytest.mark.parametrize("byte", [0, 8, -1])
def test_one_changed_byte_in_the_weights_is_refused(ct_bundle, byte):
    path = ct_bundle.folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"weights were changed or truncated \(found sha256 \w{12}, wanted sha256"):
        load_bundle(str(ct_bundle.folder))
    # A change after loading is noticed too, when the weights are used.
    with pytest.raises(BundleError, match="weights were changed or truncated"):
        ct_bundle.build_model()


def test_truncated_weights_are_refused_even_with_a_matching_hash(ct_bundle):
    path = ct_bundle.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    source = edit_yaml(ct_bundle, lambda config: config["weights"].update(sha256=digest))
    with pytest.raises(BundleError, match="weights are no safetensors file"):
        load_bundle(source).build_model()


def test_a_pickle_named_safetensors_is_refused_and_never_unpickled(ct_bundle, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    path = ct_bundle.folder / "model.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    source = edit_yaml(ct_bundle, lambda config: config["weights"].update(sha256=digest))
    with pytest.raises(BundleError, match="weights are no safetensors file"):
        load_bundle(source).build_model()
    assert not (tmp_path / "exploded").exists()


def rewrite_weights(bundle, change):
    state = bundle.build_model().state_dict()
    change(state)
    path = bundle.folder / "model.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return load_bundle(edit_yaml(bundle, lambda config: config["weights"].update(sha256=digest)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(next(iter(state))), "1 missing: .*; 0 unknown: none"),
        (lambda state: state.update(extra=torch.zeros(1)), "0 missing: none; 1 unknown: extra"),
        (lambda state: state.update({next(iter(state)): torch.zeros(1, 2, 3)}), "differ in shape.*size mismatch"),
        (lambda state: next(iter(state.values())).fill_(np.nan), "weights are not finite"),
    ],
)
def test_weights_that_do_not_fit_the_model_are_refused(ct_bundle, change, message):
    with pytest.raises(BundleError, match=message):
        rewrite_weights(ct_bundle, change).build_model()


@pytest.mark.parametrize("name", ["bundle.yaml", "model.safetensors"])
def test_a_missing_file_is_named(ct_bundle, name):
    (ct_bundle.folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing or cannot be read .*copy the whole bundle again"):
        load_bundle(str(ct_bundle.folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(surprise=1), "unknown key surprise"),
        (lambda c: c["input"].update(unit="HU"), "unknown key input.unit"),
        (lambda c: c["model"].update(args={}), "unknown key model.args"),
        (lambda c: c.pop("task"), "missing key task"),
        (lambda c: c.pop("weights"), "missing key weights"),
        (lambda c: c.update(task="segment"), "task: Input should be"),
        (lambda c: c.update(format=2), "another format .*found format 2, wanted format 1.*update medseq"),
        (lambda c: c["weights"].update(file="../../etc/passwd"), "weights.file must be a plain name"),
        (lambda c: c["weights"].update(file="model.bin"), "weights.file must be a plain name"),
        (lambda c: c["weights"].update(sha256="abc"), "weights.sha256"),
        (lambda c: c["input"].update(modality=["XX"]), r"input.modality.0: Input should be 'CT'"),
        (lambda c: c["inference"].update(overlap=1.0), "inference.overlap: Input should be less than 1"),
        (lambda c: c["inference"].update(batch=0), "inference.batch"),
        (lambda c: c["inference"].update(tile=4), "inference.tile must be at least 8"),
        (lambda c: c.update(valid_range={"min": 5, "max": 1}), "min 5 is above max 1"),
        (lambda c: c.update(name="../x"), "name: String should match"),
        (lambda c: c["model"].update(class_path="os.system"), r"class_path is outside medseq .*--trust-package os"),
        (lambda c: c["model"].update(class_path="medseq"), "model.class_path: String should match"),
        (
            lambda c: c["model"]["init_args"].update(mixer={"class_path": "subprocess.Popen"}),
            "class_path is outside medseq .*subprocess.Popen",
        ),
        (
            lambda c: c["preprocess"].append({"class_path": "builtins.eval", "init_args": {}}),
            "class_path is outside medseq .*builtins.eval",
        ),
        (
            lambda c: c["model"]["init_args"].update(x=[{"class_path": "medseq.a.B", "run": 1}]),
            "nested class_path is malformed",
        ),
    ],
)
def test_a_changed_configuration_is_refused_with_its_reason(ct_bundle, change, message):
    with pytest.raises(BundleError, match=message):
        load_bundle(edit_yaml(ct_bundle, change))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "holds no mapping"),
        (b"- 1\n- 2\n", "holds no mapping"),
        (b"a: [1, 2", "not readable"),
        (b"a: 1\na: 2\n", "repeated keys: a"),
        (b"a: &x [1]\nb: *x\n", "aliases"),
        (b"a: !!python/object/apply:os.system ['true']\n", "not readable"),
        (b"\xff\xfe\x00", "not readable"),
        (b"a: 1\n" + b" " * (1 << 20), "too large"),
    ],
)
def test_yaml_that_is_not_plain_is_refused(text, message):
    with pytest.raises(BundleError, match=message):
        parse_yaml(text, where="here")


def test_units_one_may_be_written_as_a_number(ct_bundle):
    config = ct_bundle.config.model_dump(mode="json", exclude_none=True)
    config["input"]["units"] = 1
    assert validate_config(config, where="here").input.units == "1"


def test_unknown_names_and_missing_folders_say_what_to_do(tmp_path):
    with pytest.raises(BundleError, match=r"no bundle of this name \(found 'no-such'.*a path with a separator"):
        load_bundle("no-such")
    with pytest.raises(BundleError, match="no such bundle folder"):
        load_bundle(str(tmp_path / "absent"))
    with pytest.raises(BundleError, match="no such bundle folder"):
        load_bundle("./absent")


@pytest.mark.parametrize(
    ("class_path", "message"),
    [
        ("medseq.no_such.Thing", "cannot be imported"),
        ("medseq.models.restore_unet.Nothing", "does not exist"),
        # What a trusted module imports is not its own.
        ("medseq.models.restore_unet.nn", "neither a layer nor a transform"),
        ("medseq.inference.bundle.Path", "neither a layer nor a transform"),
        ("medseq.errors.InputError", "neither a layer nor a transform"),
        ("medseq.inference.bundle.load_bundle", "neither a layer nor a transform"),
    ],
)
def test_only_own_layers_and_transforms_can_be_built(class_path, message):
    with pytest.raises(BundleError, match=message):
        build_class(ClassSpec(class_path=class_path), where="here")


def test_wrong_keywords_are_refused_with_the_class(ct_bundle):
    spec = ClassSpec(class_path="medseq.models.restore_unet.RestoreUNet", init_args={"depht": 3})
    with pytest.raises(BundleError, match="RestoreUNet cannot be built: .*depht.*check its init_args"):
        build_class(spec, where="here")


def test_nested_classes_become_factories_or_instances(tmp_path, monkeypatch):
    package = tmp_path / "friendly"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from collections.abc import Callable\n"
        "from torch import nn\n"
        "class Inner(nn.Module):\n"
        "    def __init__(self, channels: int = 3, scale: float = 1.0):\n"
        "        super().__init__()\n"
        "        self.channels, self.scale = channels, scale\n"
        "class Outer(nn.Module):\n"
        "    def __init__(self, mixer: Callable[[int], nn.Module] | None = None, part: nn.Module | None = None):\n"
        "        super().__init__()\n"
        "        self.made, self.part = mixer(7), part\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    inner = {"class_path": "friendly.Inner", "init_args": {"scale": 2.0}}
    spec = ClassSpec(class_path="friendly.Outer", init_args={"mixer": inner, "part": inner})
    with pytest.raises(BundleError, match="pass --trust-package friendly"):
        build_class(spec, where="here")
    assert "friendly" not in sys.modules
    model = build_class(spec, where="here", trust_packages=["friendly"])
    assert (model.made.channels, model.made.scale) == (7, 2.0)
    assert (model.part.channels, model.part.scale) == (3, 2.0)
    sys.modules.pop("friendly")


def test_a_preprocess_entry_must_be_a_transform(ct_bundle):
    source = edit_yaml(
        ct_bundle,
        lambda c: c.update(preprocess=[{"class_path": "medseq.models.restore_unet.RestoreUNet", "init_args": {}}]),
    )
    with pytest.raises(BundleError, match="preprocess entry is not a transform"):
        load_bundle(source).transforms()


def test_damaged_metadata_is_refused(ct_bundle):
    (ct_bundle.folder / "metadata.json").write_text("{")
    with pytest.raises(BundleError, match="metadata.json is not readable"):
        load_bundle(str(ct_bundle.folder))


def test_messages_hold_no_path(ct_bundle):
    (ct_bundle.folder / "bundle.yaml").unlink()
    with pytest.raises(BundleError, match="bundle.yaml") as caught:
        load_bundle(str(ct_bundle.folder))
    assert str(ct_bundle.folder.parent) not in str(caught.value)


def test_the_zoo_lists_and_loads(monkeypatch, make, tmp_path):
    from medseq.inference import zoo

    make.bundle(tmp_path / "zoo" / "tiny-ct")
    monkeypatch.setattr(zoo, "zoo_folder", lambda: tmp_path / "zoo")
    monkeypatch.setattr("medseq.inference.bundle.zoo_folder", lambda: tmp_path / "zoo")
    assert zoo.zoo_names() == ["tiny-ct"]
    entry = zoo.zoo_entry("tiny-ct")
    assert (entry.task, entry.modality, entry.units) == ("restore", ("CT",), "HU")
    assert entry.bytes == (tmp_path / "zoo" / "tiny-ct" / "model.safetensors").stat().st_size
    assert json.dumps(entry.metadata)
    assert load_bundle("tiny-ct").config.name == "tiny-ct"
    with pytest.raises(BundleError, match=re.escape("wanted tiny-ct")):
        zoo.zoo_entry("other")
    (tmp_path / "zoo" / "tiny-ct" / "bundle.yaml").write_text("name: x")
    with pytest.raises(BundleError, match="shipped bundle cannot be read.*install medseq again"):
        zoo.zoo_entry("tiny-ct")
