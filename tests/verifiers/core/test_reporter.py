"""Without a reporter, Python warns of what the user should know, at the line of the call."""

import warnings

import pytest
import torch
from torch import nn

from verifiers.certify.certify import certify
from verifiers.certify.config import CertifyConfig
from verifiers.core.reporter import Reporter, Warner


class Unknown(nn.Module):
    """Has an operator that no engine bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.i0(self.body(x))


def test_a_warning_is_at_the_line_that_called() -> None:
    with pytest.warns(UserWarning, match="look here") as caught:
        Warner().warn("look here")
    assert caught[0].filename == __file__


def test_an_unsupported_method_is_said_aloud_with_the_line_of_the_network() -> None:
    network, x = Unknown().eval(), torch.rand(2, 4)
    config = CertifyConfig(eps="0.01", methods=("crown",))
    with pytest.warns(UserWarning, match="crown: UNSUPPORTED") as caught:
        certify(network, (x, network(x).argmax(1)), config)
    said = str(caught[0].message)
    assert "'special_i0'" in said and "test_reporter.py:" in said and "return torch.special.i0(self.body(x))" in said


def test_a_reporter_of_ones_own_is_not_doubled() -> None:
    network, x = Unknown().eval(), torch.rand(2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        certify(network, (x, network(x).argmax(1)), CertifyConfig(eps="0.01", methods=("crown",)), reporter=Reporter())
