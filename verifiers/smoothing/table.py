"""The columns of randomized smoothing in a file, for votes counted here and for imported logs."""

from verifiers.core.columns import Column
from verifiers.core.noise import LOOKS

CLAIM = "with confidence 1 - alpha the smoothed classifier's prediction is the same on the ball"
PAPER = "Cohen et al., arXiv 1902.02918; Yang et al., arXiv 2002.08118 (uniform noise)"
COLUMNS = (
    Column("base", "int64", "", "class that the network itself gives to the clean image"),
    Column("selected", "int64", "", "class that the selection copies chose, also where the vote abstained"),
    Column("radius_one_class", "float64", "pixels", "radius from the bound of the selected class alone, any label"),
    Column("radius_two_class", "float64", "pixels", "radius that also bounds the second class; an alternative"),
    Column("p_lower", "float64", "", "lower confidence bound of the selected class's probability"),
    Column("stage", "uint8", "", "looks taken: how many entries of the schedule"),
    Column("used", "int64", "", "noisy copies drawn for the estimate"),
    Column("votes", "uint32", "", "cumulative votes at each look, classes in order", axes=(LOOKS, "class")),
    Column("teacher_votes", "uint32", "", "the teacher's votes on the same copies, if there was one", ("class",)),
    Column("same_votes", "uint32", "", "copies to which both gave that class, if there was a teacher", ("class",)),
)
