"""Summarise complete verification: the stages of its cascade."""

from enum import IntEnum


class Stage(IntEnum):
    """The stages, in the order in which a sample meets them."""

    ATTACK = 1
    IBP = 2
    CROWN = 3
    ALPHA_CROWN = 4
    BRANCH_AND_BOUND = 5

    @property
    def title(self) -> str:
        """As tables and descriptions write it."""
        return self.name.lower().replace("_", "-").replace("-and-", " and ")

    @property
    def column(self) -> str:
        """Where its seconds are stored."""
        return f"{self.name.lower()}_seconds"
