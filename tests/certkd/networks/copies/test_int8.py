"""Int8 copies: the logits of onnxruntime in all bits, scales for each channel or one, and what is refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from certkd.config.copies import Int8
from certkd.networks.copies.int8 import agreement, quantise
from certkd.networks.onnx.classifier import classifier
from tests.certkd.networks.copies.originals import images, original
from verifiers.core.errors import InputError
from verifiers.graph.integers import computes_in_int8


@pytest.mark.parametrize("scales", ["per-channel", "per-tensor"])
@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("name", ["certkd:mlp", "certkd:cnn"])
def test_a_copy_gives_the_logits_of_onnxruntime(name: str, form: str, scales: str, tmp_path: Path) -> None:
    options = {"hidden": [9]} if name == "certkd:mlp" else {"width": 3, "hidden": 7}
    whole = original(name, **options)
    out = tmp_path / "copy.onnx"
    quantise(whole, Int8(format=form, scales=scales), images(whole, 30), out)
    copy = classifier(out).model
    assert computes_in_int8(copy)
    x = images(whole, 40)
    exact = onnxruntime.SessionOptions()
    exact.add_session_config_entry("session.x64quantprecision", "1")  # no clipped pairs on processors without VNNI
    session = onnxruntime.InferenceSession(out, exact, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"image": x.numpy()})[0]
    with torch.no_grad():
        assert np.array_equal(copy(x).numpy(), expected), "not the integers of the runtime"
        assert float((copy(x) - whole.model(x)).abs().max()) < 0.1
    assert agreement(whole, out, x) >= 0.8
    stored = onnx.load(out)
    about = json.loads(next(entry.value for entry in stored.metadata_props if entry.key == "certkd"))
    assert about == {"of": whole.sha256, "how": {"kind": "int8", "format": form, "scales": scales, "images": 256}}
    weights = [i for i in stored.graph.initializer if i.data_type == onnx.TensorProto.INT8 and len(i.dims) >= 2]
    sizes = [onnx.numpy_helper.to_array(i).size for i in stored.graph.initializer if "scale" in i.name]
    assert len(weights) >= 2
    assert (max(sizes) > 1) == (scales == "per-channel")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    whole = original("certkd:mlp", hidden=[4])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^cannot write"):
        quantise(whole, Int8(), images(whole), tmp_path / "file" / "copy.onnx")
