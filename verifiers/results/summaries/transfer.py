"""What blocks the transfer of a certificate."""

from enum import IntEnum


class Blocker(IntEnum):
    """The largest term between the teacher's certified margin and the student's, where nothing certifies that."""

    NONE = 0
    TEACHER = 1  # the teacher has no certificate to pass on
    DEFICIT = 2  # the student's margin at the image is smaller
    GRADIENT = 3  # the gradients differ
    STUDENT = 4  # the student is not linear enough
    REFERENCE = 5  # the teacher is not linear enough
