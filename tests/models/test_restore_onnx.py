"""Restoration networks as ONNX graphs: onnxruntime gives torch's numbers."""

import numpy as np
import onnxruntime
import pytest
import torch

from medseq.models.restore_rwkv import restore_rwkv_light
from medseq.models.restore_unet import RestoreUNet
from medseq.models.restore_vmamba_unet import RestoreVMambaUNet

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
MODELS = {
    "rwkv": lambda: restore_rwkv_light(1, 1, dim=8, num_blocks=(1, 1, 1, 1)).eval(),
    "vmamba": lambda: RestoreVMambaUNet(
        1, 1, dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=0, shuffle=2
    ).eval(),
    "unet": lambda: RestoreUNet(1, 1, (8, 8), (1, 1)).eval(),
}


# A graph of the cross scan takes a minute to make.
@pytest.mark.parametrize("name", ["rwkv", "unet", pytest.param("vmamba", marks=pytest.mark.slow)])
def test_onnxruntime_agrees_with_torch(name, tmp_path, seed):
    generator = torch.Generator().manual_seed(seed)
    model = MODELS[name]()
    with torch.no_grad():
        # The last layer starts at zero, which would hide the network behind its skip connection.
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    image = torch.randn(1, 1, 16, 16, generator=generator)
    program = torch.onnx.export(model, (image,), dynamo=True, verbose=False, optimize=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    with torch.inference_mode():
        expected = model(image).numpy()
    assert np.abs(expected - image.numpy()).max() > 1e-2
    # Another order of the sums of a whole network in float32; values are of order 1.
    assert np.abs(found - expected).max() <= 1e-4
