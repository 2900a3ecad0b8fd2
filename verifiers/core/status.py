"""The status of a sample and the guarantee of a method."""

from enum import IntEnum, StrEnum


class Status(IntEnum):
    """What became of one sample; exactly one per row. A failure is never folded into NOT_CERTIFIED."""

    PENDING = 0
    CERTIFIED = 1
    NOT_CERTIFIED = 2
    ABSTAINED = 3
    MISCLASSIFIED = 4
    FALSIFIED = 5
    VACUOUS = 6
    UNSUPPORTED = 7
    OUT_OF_MEMORY = 8
    TIMEOUT = 9
    ERROR = 10


#: Rows in these states say nothing about the sample: a resumed run tries them again.
FAILURES = (Status.UNSUPPORTED, Status.OUT_OF_MEMORY, Status.TIMEOUT, Status.ERROR)


class Guarantee(StrEnum):
    """What a method's answer is worth."""

    DETERMINISTIC = "deterministic"  # a proof, up to the stated rounding allowance
    PROBABILISTIC = "probabilistic"  # confidence 1 - alpha per sample
    ESTIMATE = "estimate"  # no proof; never feeds a radius


class About(StrEnum):
    """What a method's rows are about."""

    NETWORK = "network"  # one network, as it runs
    PAIR = "pair"  # a network and its teacher
    SMOOTHED = "smoothed"  # the network's vote over noisy copies
