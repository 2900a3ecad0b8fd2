"""Checkpoints from strangers: each is refused in one line, before anything large is built and without running it."""

import collections
import io
import json
import pickle
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from certkd.config.settings import DataConfig, ModelConfig
from certkd.data.sources import load as load_data
from certkd.networks import pickled as pickled_files
from certkd.networks.builders import ModelSpec, build
from certkd.networks.checkpoint import Checkpoint, load, save
from certkd.networks.resolve import data_of, for_training
from tests.cli import refused
from tests.fuzz.trial import WATCH
from verifiers.core.errors import InputError

SPEC = ModelSpec(name="certkd:mlp", options={"hidden": [6]}, classes=4, shape=(1, 4, 4), mean=(0.5,), std=(0.5,))
Change = Callable[[dict[str, Any]], object]
WEIGHT = "network.1.weight"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A small checkpoint."""
    torch.manual_seed(0)
    data = {"name": "digits", "seed": 0}
    save(Checkpoint(build(SPEC).eval(), data=data, teacher_sha256="ab" * 32), tmp_path / "good.pt")
    return tmp_path / "good.pt"


def refusal(path: Path) -> str:
    """The line that refuses a file; nothing is started or fetched, and it takes no time."""
    WATCH.seen, WATCH.active, WATCH.outside = [], True, path.parent / "outside"
    started = time.process_time()
    try:
        with pytest.raises(InputError) as caught:
            load(path)
    finally:
        WATCH.active = False
    assert not WATCH.seen, WATCH.seen
    assert time.process_time() - started < 60, "it takes too long"
    message = str(caught.value)
    assert message.isprintable() and len(message) <= 700, message
    return message


def architecture(**values: Any) -> Change:
    return lambda content: content["architecture"].update(values)


def options(name: str, shape: tuple[int, ...] = (3, 32, 32), **values: Any) -> Change:
    return architecture(name=name, options=values, shape=shape, mean=(), std=())


def entry(**values: Any) -> Change:
    return lambda content: content.update(values)


def weight(value: Any) -> Change:
    return lambda content: content["state_dict"].update({WEIGHT: value})


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def shared(levels: int) -> Any:
    """A list of lists that share their parts: 2^levels entries in few bytes."""
    value: Any = [1, 1]
    for _ in range(levels):
        value = [value, value]
    return value


RESNET, VIT = "timm:resnet18", "timm:vit_tiny_patch16_224"
LARGER = "larger network than its weights"
CHANGES: dict[str, tuple[Change, str]] = {
    # names
    "a hub": (options("timm:hf-hub:attacker/model"), "fetched from a network"),
    "an older hub": (options("timm:hf_hub:attacker/model"), "fetched from a network"),
    "a folder for a hub": (options("timm:local-dir:/etc"), "fetched from a network"),
    "a tag": (options("timm:resnet18.no_such_tag"), "resnet18"),
    "a path for a name": (architecture(name="/etc/passwd"), "unknown network"),
    "a source for a name": (architecture(name="os:system"), "unknown network"),
    "a name with control characters": (architecture(name="\x1b[2Jtimm:\x07"), "unknown network"),
    "a name of a megabyte": (architecture(name="timm:" + "x" * 2**20), "architecture"),
    "a name that is a number": (architecture(name=5), "architecture"),
    "a dotted torchvision name": (options("torchvision:models.resnet18"), "unknown network"),
    "a detector": (options("torchvision:fasterrcnn_resnet50_fpn"), "unknown network"),
    # options
    "a file of weights": (options(RESNET, checkpoint_path="/etc/passwd"), "no option 'checkpoint_path'"),
    "weights by address": (options(RESNET, pretrained_cfg={"url": "http://x"}), "no option 'pretrained_cfg'"),
    "an overlay": (options(RESNET, pretrained_cfg_overlay={"file": "/etc/passwd"}), "no option"),
    "a cache": (options(RESNET, cache_dir="/etc"), "no option 'cache_dir'"),
    "pretrained": (options(RESNET, pretrained=True), "no option 'pretrained'"),
    "scripted": (options(RESNET, scriptable=True), "no option 'scriptable'"),
    "a function by name": (options(RESNET, act_layer="os.system"), "act_layer must be one of"),
    "a block": (options(RESNET, block="x"), "no option 'block'"),
    "a norm layer": (options(RESNET, norm_layer="os.system"), "no option 'norm_layer'"),
    "a classifier's size": (options(RESNET, num_classes=10**9), "no option 'num_classes'"),
    "channels": (options(RESNET, in_chans=10**9), "no option 'in_chans'"),
    "a device": (options(RESNET, device="cuda"), "no option 'device'"),
    "torchvision's weights": (options("torchvision:resnet18", weights="DEFAULT"), "no option 'weights'"),
    "torchvision's progress": (options("torchvision:resnet18", progress=True), "no option 'progress'"),
    "torchvision's layer": (options("torchvision:resnet18", norm_layer="x"), "no option 'norm_layer'"),
    "an option with control characters": (options(RESNET, **{"\x1b[2J": 1}), "no option '\\x1b"),
    "an option of a megabyte": (options(RESNET, **{"x" * 2**20: 1}), "no option"),
    "a pool by name": (options(RESNET, global_pool="eval"), "global_pool must be one of"),
    "no number": (options(VIT, depth="many"), "depth must be"),
    "a truth for a number": (options(VIT, depth=True), "depth must be"),
    "not a number": (options(VIT, mlp_ratio=float("nan")), "mlp_ratio must be"),
    "endless": (options(VIT, mlp_ratio=float("inf")), "mlp_ratio must be"),
    "options that are a list": (architecture(options=[1]), "architecture"),
    "options that are deep": (architecture(options={"hidden": nested(100)}), "levels"),
    "options that are shared": (architecture(options={"hidden": shared(60)}), "entries"),
    "an output to choose": (architecture(output="state_dict"), "has one output: drop output"),
    # sizes
    "wide": (architecture(options={"hidden": [20000, 20000]}), LARGER),
    "wider": (architecture(options={"hidden": [10**6, 10**6]}), LARGER),
    "widest": (architecture(options={"hidden": [10**18]}), "hidden must be"),
    "a negative width": (architecture(options={"hidden": [-1]}), "hidden must be"),
    "deep": (architecture(options={"hidden": [1] * 2000}), LARGER),
    "deeper": (architecture(options={"hidden": [64] * 90_000}), "hidden must be"),
    "a deep resnet": (options("certkd:resnet", depth=1994), LARGER),
    "a deeper resnet": (options("certkd:resnet", depth=60_002), "depth must be"),
    "a wide resnet": (options("certkd:resnet", depth=8, width=2**20), LARGER),
    "a wide network": (options("certkd:cnn", width=2**20, hidden=2**20), LARGER),
    "a deep transformer": (options(VIT, depth=2000), LARGER),
    "a deeper transformer": (options(VIT, depth=10**6), "depth must be"),
    "a wide transformer": (options(VIT, embed_dim=2**18 * 3), LARGER),
    "small patches": (options(VIT, (3, 1024, 1024), patch_size=1), LARGER),
    "large windows": (options("timm:swin_tiny_patch4_window7_224", window_size=256, img_size=1024), LARGER),
    "many stages": (options("timm:convnext_tiny", depths=[250] * 4), LARGER),
    "a network of another size": (options("timm:vit_giant_patch14_dinov2"), LARGER),
    "a large torchvision network": (options("torchvision:vgg19"), LARGER),
    "a wide torchvision network": (options("torchvision:mobilenet_v2", width_mult=99.0), LARGER),
    "many classes": (architecture(classes=10**6), "weights"),
    "more classes": (architecture(classes=10**12), "classes"),
    "negative classes": (architecture(classes=-4), "classes"),
    "huge images": (architecture(shape=[1, 10**6, 10**6]), "images of at most"),
    "a side of no length": (architecture(shape=[1, 0, 4]), "shape"),
    "a number for a shape": (architecture(shape=5), "shape"),
    "no shape": (architecture(shape=[]), "shape"),
    "resized to huge images": (architecture(resize=[10**5, 10**5]), "images of at most"),
    "many channels": (architecture(shape=[10**6, 1, 1]), "needs one number per channel"),
    "a mean of many": (architecture(mean=[0.5] * 9, std=[0.5] * 9), "certkd:mlp"),
    "a deviation of 0": (architecture(std=[0.0]), "std"),
    "a mean without a number": (architecture(mean=[float("nan")]), "mean"),
    "an unknown key": (architecture(code="import os"), "code"),
    "no architecture": (entry(architecture=None), "architecture"),
    "a text for an architecture": (entry(architecture="certkd:mlp"), "architecture"),
    # metadata
    "data is a number": (entry(data=0), "data"),
    "data has an unknown key": (entry(data={"name": "digits", "more": 1}), "more"),
    "data has a word for a seed": (entry(data={"name": "digits", "seed": "x"}), "seed"),
    "a hash is bytes": (entry(teacher_sha256=b"x"), "bytes"),
    "a hash is a text": (entry(teacher_sha256="\x1b[2J"), "teacher_sha256"),
    "a training is a list": (entry(training=[1]), "training"),
    "metrics are a word": (entry(metrics="x"), "metrics"),
    "metrics hold a tensor": (entry(metrics={"clean": torch.zeros(2)}), "metadata holds View"),
    "a training is deep": (entry(training=nested(100)), "levels"),
    "a training is shared": (entry(training={"a": shared(60)}), "entries"),
    "a huge number": (entry(training={"a": 10**4000}), "80 bits"),
    "a key that is a number": (entry(training={5: 5}), "not text"),
    "a version that is a list": (entry(format_version=[1] * 999), "version"),
    # weights
    "the weights are bytes": (entry(state_dict=b"x"), "no weights"),
    "the weights are a list": (entry(state_dict=[torch.zeros(2)]), "no weights"),
    "the weights are a tensor": (entry(state_dict=torch.zeros(2)), "no weights"),
    "a weight is a word": (weight("x"), "no weights"),
    "a weight is a dictionary": (weight({"a": torch.zeros(6, 16)}), "no weights"),
    "a weight is sparse": (weight(torch.zeros(6, 16).to_sparse()), "sparse"),
    "a weight is sparse in rows": (weight(torch.zeros(6, 16).to_sparse_csr()), "sparse"),
    "a weight without values": (weight(torch.zeros(6, 16, device="meta")), "without values"),
    "a weight is complex": (weight(torch.zeros(6, 16, dtype=torch.complex64)), "complex"),
    "a weight of 8 bits": (weight(torch.zeros(6, 16).to(torch.float8_e4m3fn)), "8 bits"),
    "a weight is whole": (weight(torch.zeros(6, 16, dtype=torch.int64)), "int64"),
    "a weight is of truths": (weight(torch.zeros(6, 16, dtype=torch.bool)), "bool"),
    "a weight repeats a number": (weight(torch.zeros(1).expand(6, 16)), "in a storage of 1 numbers"),
    "a weight repeats a number a million times": (weight(torch.zeros(1).expand(10**6, 10**6)), "in a storage of 1"),
    "a weight overlaps itself": (weight(torch.zeros(20).as_strided((6, 16), (0, 1))), "in a storage of 20"),
    "a weight has no entries": (weight(torch.zeros(0, 2**40)), "shape"),
    "a weight is a program": (weight(torch.nn.Linear(16, 6)), "holds code (torch.nn.modules.linear.Linear)"),
    "a key is a number": (lambda content: content["state_dict"].update({5: torch.zeros(2)}), "no weights"),
    "a key is a list": (lambda content: content["state_dict"].update({(1, 2): torch.zeros(2)}), "tuple for a key"),
    "a name in control characters": (lambda c: c["state_dict"].update({"\x1b[2J": torch.zeros(2)}), "\\x1b"),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.thin(4)
def test_a_changed_checkpoint_is_refused(good: Path, what: str) -> None:
    change, words = CHANGES[what]
    content = torch.load(good, weights_only=True)
    change(content)
    torch.save(content, good)
    message = refusal(good)
    assert words in message, message


@pytest.mark.parametrize(("name", "option"), [("timm:hf-hub:a/b", {}), (RESNET, {"block": 1})], ids=["hub", "option"])
def test_a_refusal_does_not_wait_for_the_import_of_a_source(
    good: Path, name: str, option: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = torch.load(good, weights_only=True)
    content["architecture"].update(name=name, options=option)
    torch.save(content, good)
    monkeypatch.setitem(sys.modules, "timm", None)  # an import of timm now fails
    assert "fetched from a network" in refusal(good) or "has no option 'block'" in refusal(good)


@pytest.mark.parametrize(
    "name", ["../outside/d.npz", "/etc/d.npz", "~/pictures", "/dev/zero", "x/../../images.npy:labels.npy"]
)
def test_data_outside_of_the_folder_are_not_opened(good: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(good.parent)
    content = torch.load(good, weights_only=True)
    content["data"] = {"name": name}
    torch.save(content, good)
    known = load(good)
    with pytest.raises(InputError, match=r"outside of this folder: name it with --data"):
        data_of(known, DataConfig())
    assert data_of(known, DataConfig(name=name)).name == name, "a data set that is named is used"
    content["data"] = {"name": "d.npz"}
    torch.save(content, good)
    assert data_of(load(good), DataConfig()).name == "d.npz"


# pickles


def pickled(value: bytes) -> bytes:
    """A pickle of these operations."""
    return b"\x80\x02" + value + b"."


def named(module: str, name: str, arguments: bytes = b")") -> bytes:
    """A call of a function without arguments, or with these."""
    return f"c{module}\n{name}\n".encode() + arguments + b"R"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


PICKLES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not a complete checkpoint"),
    "no end": (b"\x80\x02}", "not a complete checkpoint"),
    "an end alone": (b".", "not a complete checkpoint"),
    "a system call": (pickled(named("os", "system", b"(" + text("touch x") + b"t")), "holds code (os.system)"),
    "a call by stack": (b"\x80\x04" + text("os") + text("system") + b"\x93)R.", "holds code (os.system)"),
    "an instance": (pickled(b"(ios\nsystem\n"), "holds code"),
    "an object": (pickled(b"(cos\nsystem\no"), "holds code"),
    "an extension": (pickled(b"\x82\x01"), "holds code"),
    "a new object": (pickled(b"ccollections\nOrderedDict\n)\x81"), "holds code"),
    "a long number": (pickled(b"\x8b" + struct.pack("<i", 2**30)), "not a complete checkpoint"),
    "a long text": (b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b".", "not a complete checkpoint"),
    "a frame": (b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b".", "not a complete checkpoint"),
    "a memo": (pickled(b"}r\xff\xff\xff\x7f"), "no weights"),
    "a value that is not known": (pickled(b"h\x05"), "not a complete checkpoint"),
    "a mark alone": (pickled(b"("), "no weights"),
    "no mark": (pickled(b"t"), "not a complete checkpoint"),
    "a list in itself": (pickled(b"]q\x00h\x00a"), "no weights"),
    "a dictionary in itself": (pickled(b"}q\x00(" + text("state_dict") + b"h\x00u"), "no weights"),
    "many lists": (pickled(b"]" * 21_000), "operations"),
    "many levels": (pickled(b"(" * 9000 + b"N" + b"l" * 9000), "no weights"),
    "a large array": (pickled(named("builtins", "bytearray", b"J\0\0\0\x7f\x85")), "holds code (builtins.bytearray)"),
    "a large storage": (pickled(named("torch", "FloatStorage", b"J\0\0\0\x7f\x85")), "holds code (torch.FloatStorage)"),
    "a large tensor": (pickled(named("torch", "zeros", b"J\0\0\0\x7f\x85")), "holds code (torch.zeros)"),
    "torch's loader": (pickled(named("torch", "load", b"(" + text("/etc/passwd") + b"t")), "holds code (torch.load)"),
    "torch's hub": (pickled(b"ctorch.hub\nload\n"), "holds code (torch.hub.load)"),
    "a dotted name": (pickled(b"ctorch\nserialization.load\n"), "holds code (torch.serialization.load)"),
    "a name in control characters": (pickled(b"c\x1b[2J\x07\nx\n"), "holds code (\\x1b"),
    "a set of lists": (pickled(named("builtins", "set", b"]]a\x85")), "no weights"),
    "a dictionary of floats": (pickled(b"}(G" + b"\0" * 8 + b"Nu"), "float for a key"),
    "half a pair": (pickled(b"}(Nu"), "not a complete checkpoint"),
    "attributes of a list": (pickled(b"]}b"), "holds code"),
    "a storage that is none": (pickled(b"(" + text("file") + text("/etc/passwd") + b"tQ"), "holds code (file)"),
    "a persistent name": (pickled(b"P/etc/passwd\n"), "holds code"),
}


@pytest.mark.parametrize("what", PICKLES)
def test_a_strange_pickle_is_refused(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickled_files, "OPERATIONS", 20_000)
    content, words = PICKLES[what]
    path = tmp_path / "strange.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    message = refusal(path)
    assert words in message, message


def test_lists_from_a_list_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call copies a list of 1,000 entries."""
    monkeypatch.setattr(pickled_files, "OPERATIONS", 20_000)
    path = tmp_path / "s.pt"
    body = b"(" + b"N" * 1000 + b"tq\x00ctorch\nSize\nq\x01" + b"h\x01h\x00\x85R" * 100
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(body))
    assert "operations" in refusal(path)


# archives


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def written(path: Path, parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def root(path: Path) -> str:
    return next(name for name in entries(path) if name.endswith("data.pkl")).removesuffix("data.pkl")


ARCHIVES: dict[str, tuple[Callable[[dict[str, bytes], str], object], str]] = {
    "a short tensor": (lambda parts, at: parts.update({f"{at}data/0": b"12"}), "not a complete checkpoint"),
    "a long tensor": (lambda parts, at: parts.update({f"{at}data/0": bytes(4096)}), "not a complete checkpoint"),
    "no tensor": (lambda parts, at: parts.pop(f"{at}data/1"), "not a complete checkpoint"),
    "no pickle": (lambda parts, at: parts.pop(f"{at}data.pkl"), "has no data.pkl"),
    "two pickles": (lambda parts, at: parts.update({"other/data.pkl": b"."}), "has no data.pkl"),
    "a program": (lambda parts, at: parts.update({f"{at}code/__torch__.py": b"def f(): pass"}), "TorchScript"),
    "a program's constants": (lambda parts, at: parts.update({f"{at}constants.pkl": b"."}), "TorchScript"),
    "another order of bytes": (lambda parts, at: parts.update({f"{at}byteorder": b"big"}), "big-endian"),
    "a long pickle": (lambda parts, at: parts.update({f"{at}data.pkl": b"N" * (1 << 25)}), "bytes"),
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_a_strange_archive_is_refused(good: Path, what: str) -> None:
    change, words = ARCHIVES[what]
    parts = entries(good)
    change(parts, root(good))
    message = refusal(written(good, parts))
    assert words in message, message


def test_a_compressed_archive_is_not_unpacked(good: Path) -> None:
    parts = {**entries(good), "archive/data/99": bytes(1 << 24)}
    assert "compressed" in refusal(written(good, parts, zipfile.ZIP_DEFLATED))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_twice_is_refused(good: Path) -> None:
    with zipfile.ZipFile(good, "a") as archive:
        archive.writestr(f"{root(good)}data.pkl", pickled(named("os", "system")))
    assert "twice" in refusal(good)


def test_entries_that_share_their_bytes_are_refused(good: Path) -> None:
    """Two names for one place: the sizes together are more than the file."""
    parts = {**entries(good), "archive/big": bytes(5000)}
    content = bytearray(written(good, parts).read_bytes())
    with zipfile.ZipFile(io.BytesIO(bytes(content))) as archive:
        start = archive.start_dir
        info = archive.getinfo("archive/big")
    record = content.index(b"archive/big", start) - 46
    end = content.rindex(b"PK\5\6")
    copies = b"".join(
        content[record : record + 46] + f"archive/{i:03d}".encode() + content[record + 57 : record + 57]
        for i in range(100)
    )
    assert info.file_size == 5000
    count, size = struct.unpack_from("<HL", content, end + 10)
    struct.pack_into("<HHL", content, end + 8, count + 100, count + 100, size + len(copies))
    good.write_bytes(content[:end] + copies + content[end:])
    with zipfile.ZipFile(good) as archive:
        assert sum(entry.file_size for entry in archive.infolist()) > 500_000, "the test makes no bomb"
    assert "twice" in refusal(good)


def test_a_checksum_that_is_wrong_is_noticed(good: Path) -> None:
    content = bytearray(good.read_bytes())
    state = torch.load(good, weights_only=True)["state_dict"]
    place = content.index(state[WEIGHT].numpy().tobytes())
    content[place + 5] ^= 1
    good.write_bytes(content)
    assert "CRC" in refusal(good)


def test_the_archive_is_opened_once_for_all_weights(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its table of contents is as long as the network is deep, so reading it for each weight would be quadratic."""
    original, opened = zipfile.ZipFile, []
    monkeypatch.setattr(zipfile, "ZipFile", lambda *given: opened.append(given) or original(*given))
    assert len(load(good).model.state_dict()) == 6
    assert len(opened) == 2, "once for the descriptions, and once for the numbers"


# the older format


def test_the_older_format_is_read(good: Path) -> None:
    content = torch.load(good, weights_only=True)
    expected = load(good).sha256
    torch.save(content, good, _use_new_zipfile_serialization=False)
    assert load(good).sha256 == expected


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read(good: Path, protocol: int) -> None:
    content = torch.load(good, weights_only=True)
    expected = load(good).sha256
    torch.save(content, good, pickle_protocol=protocol)
    assert load(good).sha256 == expected


def test_what_torch_reads_is_read_alike(tmp_path: Path) -> None:
    """Views, shared storages, types, parameters, and the other contents of published files."""
    from certkd.networks.described import View
    from certkd.networks.torch_file import TorchFile

    base = torch.arange(24.0)
    state = collections.OrderedDict(
        whole=base,
        part=base[3:9].reshape(2, 3),
        turned=base.reshape(4, 6).t(),
        parameter=torch.nn.Parameter(base.reshape(2, 12)),
        half=base.half(),
        brain=base.bfloat16(),
        double=base.double(),
        count=torch.tensor(5),
        bytes=torch.arange(7, dtype=torch.uint8),
        truth=torch.tensor([True, False]),
        empty=torch.zeros(0, 3),
    )
    other = {
        "epoch": 3,
        "best": 0.5,
        "kind": torch.float16,
        "size": torch.Size([1]),
        "at": torch.device("cpu"),
        "s": {1},
    }
    for new in (True, False):
        torch.save({"state_dict": state, **other}, tmp_path / "s.pt", _use_new_zipfile_serialization=new)
        file = TorchFile(tmp_path / "s.pt")
        views: dict[str, View] = file.content["state_dict"]
        assert views.keys() == state.keys()
        for name, value in state.items():
            found = file.tensor(views[name])
            assert found.dtype == value.dtype and torch.equal(found, value), f"{name} is read as {found}"
        assert file.content["epoch"] == 3 and file.content["best"] == 0.5


def older(good: Path, change: Change) -> bytes:
    content = torch.load(good, weights_only=True)
    change(content)
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def test_older_files_are_held_to_their_size(good: Path) -> None:
    content = older(good, lambda _: None)
    weights = torch.load(good, weights_only=True)["state_dict"][WEIGHT].numpy().tobytes()
    place = content.index(weights) - 8
    for count in (0, 95, 97, 2**40, 2**63 - 1):
        good.write_bytes(content[:place] + struct.pack("<q", count) + content[place + 8 :])
        assert "not a complete checkpoint" in refusal(good), count
    good.write_bytes(content[:-1])
    assert "not a complete checkpoint" in refusal(good)
    good.write_bytes(pickle.dumps({"state_dict": {}}))
    assert "torch.save did not write" in refusal(good)
    good.write_bytes(b"\x80")
    assert "not a complete checkpoint" in refusal(good)


# safetensors


def header(values: Any, data: bytes = b"") -> bytes:
    content = values if isinstance(values, bytes) else json.dumps(values).encode()
    return struct.pack("<Q", len(content)) + content + data


def tensor(begin: int, end: int, shape: list[Any], dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SAFETENSORS: dict[str, bytes] = {
    "a length alone": struct.pack("<Q", 8),
    "a length of 2^63": struct.pack("<Q", 2**63) + b"{}",
    "a length of a gigabyte": struct.pack("<Q", 2**30) + b"{}",
    "a length of minus one": b"\xff" * 8 + b"{}",
    "no JSON": header(b"hello"),
    "a list": header([1]),
    "half a header": header(b'{"a": {'),
    "brackets": header(b"[" * 100_000),
    "braces": header(b'{"a":' * 100_000),
    "not UTF-8": header(b'{"\xff\xfe": 1}'),
    "no tensors": header({}),
    "outside": header({"a": tensor(0, 400, [100])}, bytes(40)),
    "backwards": header({"a": tensor(40, 0, [10])}, bytes(40)),
    "negative": header({"a": tensor(-40, 0, [10])}, bytes(40)),
    "overlapping": header({"a": tensor(0, 40, [10]), "b": tensor(0, 40, [10])}, bytes(40)),
    "a hole": header({"a": tensor(8, 40, [8])}, bytes(40)),
    "more than named": header({"a": tensor(0, 40, [10])}, bytes(80)),
    "a shape that overflows": header({"a": tensor(0, 40, [2**40, 2**40])}, bytes(40)),
    "a negative side": header({"a": tensor(0, 40, [-10])}, bytes(40)),
    "a broken side": header({"a": tensor(0, 40, [1.5])}, bytes(40)),
    "an unknown type": header({"a": tensor(0, 40, [10], "os.system")}, bytes(40)),
    "a type that is a number": header({"a": tensor(0, 40, [10], 5)}, bytes(40)),
    "8 bits": header({"a": tensor(0, 40, [40], "F8_E4M3")}, bytes(40)),
    "complex": header({"a": tensor(0, 40, [5], "C64")}, bytes(40)),
    "a tensor that is a word": header({"a": "x"}),
    "metadata that is a list": header({"__metadata__": [1]}),
    "metadata that is no JSON": header({"__metadata__": {"certkd": "{"}, "a": tensor(0, 4, [1])}, bytes(4)),
    "metadata of a number": header({"__metadata__": {"certkd": "5"}, "a": tensor(0, 4, [1])}, bytes(4)),
    "metadata of brackets": header({"__metadata__": {"certkd": "[" * 9999}, "a": tensor(0, 4, [1])}, bytes(4)),
    "metadata of levels": header(
        {"__metadata__": {"certkd": '{"a":' * 99 + "1" + "}" * 99}, "a": tensor(0, 4, [1])}, bytes(4)
    ),
    "metadata of a huge number": header({"__metadata__": {"certkd": '{"format_version": ' + "9" * 5000 + "}"}}),
    "bare weights": header({"a": tensor(0, 40, [10])}, bytes(40)),
}


@pytest.mark.parametrize("what", SAFETENSORS)
def test_a_strange_safetensors_file_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "s.safetensors"
    path.write_bytes(SAFETENSORS[what])
    assert str(path) in refusal(path)


OF_METADATA = [what for what in list(CHANGES)[: list(CHANGES).index("the weights are bytes")] if "shared" not in what]


@pytest.mark.parametrize("what", OF_METADATA)
@pytest.mark.thin(2)
def test_metadata_of_safetensors_is_held_to_the_same(tmp_path: Path, good: Path, what: str) -> None:
    from safetensors.torch import save_file

    content = torch.load(good, weights_only=True)
    state = content.pop("state_dict")
    CHANGES[what][0](content)
    if what == "a huge number":  # which JSON of Python does not write
        content["training"] = {"a": 1e400}
        content["metrics"] = 0
    metadata = json.dumps(content, default=str)
    save_file(state, tmp_path / "s.safetensors", metadata={"certkd": metadata})
    if what in ("metrics hold a tensor", "a key that is a number"):  # text in JSON
        assert torch.equal(load(tmp_path / "s.safetensors").model.state_dict()[WEIGHT], state[WEIGHT])
    else:
        refusal(tmp_path / "s.safetensors")


def test_a_hub_is_asked_only_with_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = "timm:hf-hub:attacker/model"
    message = refused("certify", "--model", hub, "--data", "digits", "--eps", "0.1", "--methods", "pgd")
    assert "add --download" in message, message
    for changes in ({"name": hub}, {"name": hub, "pretrained": True}):
        with pytest.raises(InputError, match="described by a network's page"):
            for_training(ModelConfig(**changes), load_data(DataConfig()), 0)
