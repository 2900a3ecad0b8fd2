"""The status of a sample and the guarantee of a method."""

from enum import IntEnum, StrEnum


class Status(IntEnum):
    """The outcome of one sample; exactly one per row. A failure is never counted as NOT_CERTIFIED."""

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
    """The strength of a method's answer."""

    DETERMINISTIC = "deterministic"  # a proof, in the file's arithmetic
    PROBABILISTIC = "probabilistic"  # confidence 1 - alpha per sample
    ESTIMATE = "estimate"  # no proof; never feeds a radius


class About(StrEnum):
    """The subject of a method's rows."""

    NETWORK = "network"  # one network, as it runs
    PAIR = "pair"  # a network and its teacher
    SMOOTHED = "smoothed"  # the network's vote over noisy copies
