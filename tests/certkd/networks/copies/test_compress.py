"""What is said of a compressed copy, and what is known before one is made."""

import pytest
from torch import nn

from certkd.config.copies import Compression, Int8, LowRank, Prune
from certkd.networks.copies import compress
from certkd.networks.copies.compress import check_installed, compressed
from tests.certkd.networks.copies.originals import original
from verifiers.core.errors import InputError


def test_a_ratio_that_cannot_be_reached_is_said() -> None:
    network = original()
    lines = compressed(network, LowRank(ranks="1000x")).remarks
    assert lines and all("x fewer weights, not 1000x: its ranks are 1 already" in line for line in lines)
    assert not compressed(network, LowRank(ranks="1.5x")).remarks


class Odd(nn.Linear):
    """A linear layer of a class of its own."""


def test_layers_of_classes_of_their_own_are_said() -> None:
    network = original()
    path, layer = next((p, m) for p, m in network.model.network.named_modules() if isinstance(m, nn.Linear))
    layer.__class__ = Odd
    for how in (Prune(share=0.5), LowRank(ranks="1.5x")):
        lines = compressed(network, how).remarks
        assert any(line.startswith(f"{path} stays as it is: its class Odd") for line in lines)


@pytest.mark.parametrize(
    ("how", "package"),
    [(LowRank(), "tensorly"), (Prune(what="channels"), "torch-pruning"), (Prune(), None), (Int8(), None)],
)
def test_a_missing_package_is_named(how: Compression, package: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed(how)
    monkeypatch.setattr(compress, "find_spec", lambda name: None)
    if package is None:
        check_installed(how)
    else:
        with pytest.raises(InputError, match=rf"package {package}: install certkd\[compress\]"):
            check_installed(how)
