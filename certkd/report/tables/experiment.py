"""A whole experiment as tables."""

from certkd.comparison.compare import Comparison, figures
from verifiers.core.table import Part, Table, percent
from verifiers.results.rows import Certificates
from verifiers.results.summaries.diagnostics import side_by_side

#: The meaning of the columns of an experiment's table.
EXPLANATION = (
    "certified: correct and proved at eps. PGD: correct and not falsified by the attack at eps (an upper limit). "
    "retention: of the teacher's certified samples, the share the student has certified too; "
    "radius kept: the share where its certified radius is also at least the teacher's."
)


def experiment(networks: dict[str, Certificates], comparisons: dict[str, Comparison]) -> list[Part]:
    """Tabulate each network's accuracies and mean radius, and how much students kept; then their diagnoses."""
    columns = ["network", "certified", "PGD", "clean", "mean radius", "retention", "radius kept"]
    rows = []
    for name, certificates in networks.items():
        side, result = figures(certificates), comparisons.get(name)
        kept = [percent(result.retention.value), percent(result.radius_retention.value)] if result else ["", ""]
        shares = [percent(side.certified), percent(side.pgd), percent(side.clean)]
        rows.append([name, *shares, f"{side.mean_radius:.4f}", *kept])
    one = next(iter(networks.values()))
    title = f"{one.norm} ball, eps {one.eps_text}, {one.attributes['samples']} test samples"
    found = {name: result.diagnosis for name, result in comparisons.items() if result.diagnosis is not None}
    return [Table(title, columns, rows), *(side_by_side(found, one.norm, one.eps_text) if found else [])]
