"""``certkd methods`` and ``certkd objectives``: what there is."""

import click


@click.command()
def methods() -> None:
    """List the certificate methods, and what each one's answer is worth."""
    from certkd.report.console import stdout, table
    from verifiers.methods import METHODS

    settings = [", ".join(f"{name}={_written(value)}" for name, value in m.options.items()) for m in METHODS]
    rows = [
        [m.name, m.guarantee.value, " ".join(m.norms), m.claim, text] for m, text in zip(METHODS, settings, strict=True)
    ]
    console = stdout()
    console.print(table("Certificate methods", ["method", "guarantee", "norms", "a row says", "options"], rows))
    for method in METHODS:
        console.print(f"{method.name}: {method.paper}", soft_wrap=True)


def _written(value: object) -> str:
    return "(needed)" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@click.command()
def objectives() -> None:
    """List the training objectives with their settings and papers."""
    from certkd.objectives import OBJECTIVES
    from certkd.report.console import stdout

    console = stdout()
    for objective in OBJECTIVES:
        settings = ", ".join(
            name if field.is_required() else f"{name}={field.default}"
            for name, field in objective.model_fields.items()
            if name != "kind"
        )
        console.print(f"{objective.model_fields['kind'].default}: {objective.summary}", soft_wrap=True)
        for line in filter(None, (settings, objective.paper)):
            console.print(f"    {line}", soft_wrap=True)
