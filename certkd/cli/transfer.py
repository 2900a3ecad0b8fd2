"""``certkd transfer``."""

from typing import Any

import click

from certkd.cli.certify import certify
from certkd.cli.options import (
    ball_options,
    bare_or_named,
    data_options,
    network_options,
    pair_options,
    run_options,
    sample_options,
    teacher_options,
)
from certkd.cli.output import Command
from verifiers.core.errors import InputError


@click.command(cls=Command)
@click.argument("bare", metavar="[STUDENT]", required=False)
@pair_options
@ball_options
@sample_options
@click.option("--out", metavar="FILE", help="The student's certificate file.  [default: next to the checkpoint]")
@click.option("--teacher-out", metavar="FILE", help="The teacher's certificate file.  [default: next to the teacher]")
@run_options
@click.option("--require", "conditions", multiple=True, metavar="CONDITION", help="Like 'kept>=0.9': exit 1 if not.")
@network_options
@teacher_options
@data_options
@click.pass_context
def transfer(ctx: click.Context, bare: str | None, student: str | None, teacher: str | None, **options: Any) -> int:
    """Find which of its teacher's certificates a student keeps.

    Both networks are certified at one radius. A certificate of the teacher is kept if the student has its own, or
    if one of theorems A, B and C with certified terms or the joint differential bound carries the teacher's over.
    For each lost sample the largest obstacle is named. The command is 'certkd certify --teacher' with the methods
    pgd, crown, joint and transfer; its rows are in the student's file.
    """
    student = bare_or_named(bare, student, "--student", "certkd transfer student.pt --teacher teacher.pt --eps 8/255")
    if teacher is None:
        raise InputError("transfer compares a student with its teacher: give --teacher, like --teacher teacher.pt")
    return int(ctx.invoke(certify, model=student, teacher=teacher, methods="pgd,crown,joint,transfer", **options))
