"""Certificates of int8 files: every radius is attacked in onnxruntime itself."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from certkd.networks.onnx import network as onnx_network
from tests.certifying import certify
from tests.certkd.networks.onnx import int8
from verifiers.core.quantities import Arithmetic
from verifiers.core.status import Status

POINTS = 10_000


@pytest.mark.slow
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_no_point_of_a_radius_has_another_class_in_onnxruntime(form: str, tmp_path: Path) -> None:
    path = int8.static(tmp_path, form)
    network, _, _ = onnx_network.load(path)
    images = torch.from_numpy(np.random.default_rng(3).random((2, *int8.IMAGE), dtype=np.float32))
    labels = network.eval()(images).argmax(1)
    found = certify(network, images, labels, eps="1/255", methods=("pgd", "ibp", "crown"))
    assert found.attributes["arithmetic"] == Arithmetic.INT8
    radius = np.maximum(found["ibp"]["radius"], found["crown"]["radius"])
    assert (radius > 0).all(), f"nothing is proved: {radius}"
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(4)
    for image, label, reach in zip(images.numpy(), labels.tolist(), radius.tolist(), strict=True):
        delta = 2 * generator.random((POINTS, *int8.IMAGE), dtype=np.float32) - 1
        delta[::2] = np.sign(delta[::2])
        points = np.clip(image + np.float32(reach * (1 - 1e-6)) * delta, 0, 1)
        logits = session.run(["y"], {"x": points})[0]
        assert (logits.argmax(1) == label).all(), f"a point within {reach} has another class"
    torch.manual_seed(0)
    attacked = images.clone().requires_grad_()
    for _ in range(20):
        logits = network(attacked)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        (slope,) = torch.autograd.grad(loss, attacked)
        reach_of = torch.from_numpy(radius).float()[:, None, None, None]
        moved = attacked + 0.25 * reach_of * slope.sign()
        attacked = moved.clamp(images - reach_of, images + reach_of).clamp(0, 1).detach().requires_grad_()
    logits = session.run(["y"], {"x": attacked.detach().numpy()})[0]
    assert (logits.argmax(1) == labels.numpy()).all(), "an ascent within a radius finds another class"


@pytest.mark.slow
def test_a_dynamic_file_is_attacked_and_not_proved(tmp_path: Path) -> None:
    network, _, _ = onnx_network.load(int8.dynamic(tmp_path))
    images = torch.from_numpy(np.random.default_rng(3).random((2, *int8.IMAGE), dtype=np.float32))
    labels = network.eval()(images).argmax(1)
    found = certify(network, images, labels, eps="1/255", methods=("pgd", "ibp"), steps=3, restarts=1)
    assert set(found["ibp"]["status"]) == {Status.UNSUPPORTED}
    assert "quantises by the range of its values" in str(found["ibp"].attributes["reason"])
    assert not set(found["pgd"]["status"]) & {Status.UNSUPPORTED, Status.ERROR}
