"""Diagnoses put together into groups, malignant and benign say: the classes that a run tells apart."""

from __future__ import annotations

import difflib

import pandas as pd

from skinmtl.config.diagnosis_groups import KEY, REST, Groups, check_groups
from skinmtl.errors import ConfigError, Faults, SkinmtlError


def named_diagnoses(groups: Groups | None) -> list[str]:
    """List the diagnoses that groups name; none of them is a word for missing.

    Args:
        groups: as `group_diagnoses` takes them; None names none.
    """
    return [name for members in (groups or {}).values() if members != REST for name in members]


def group_diagnoses(table: pd.DataFrame, groups: Groups) -> pd.DataFrame:
    """Replace the diagnoses of a case table by their groups.

    Args:
        table: a case table, `dx` categorical.
        groups: names of diagnoses by the name of their group; the word rest stands for all that no group names.

    Returns:
        The table with the group as `dx`, categorical over the groups in their order, and the diagnosis itself as
        `dx_original`. A missing diagnosis stays missing.

    Raises:
        Faults: a diagnosis that the data do not know, or one that is in no group.
    """
    check_groups(groups)
    known = list(table["dx"].cat.categories)
    group_of = {member: name for name, members in groups.items() if members != REST for member in members}
    faults: list[SkinmtlError] = []
    for member, name in group_of.items():
        if member not in known:
            near = difflib.get_close_matches(member, known, 1)
            fix = f"did you mean {near[0]!r}?" if near else f"the data have {', '.join(known) or 'no diagnosis'}"
            faults.append(ConfigError(f"{KEY}.{name}", f"the data have no diagnosis {member}", fix))
    rest = next((name for name, members in groups.items() if members == REST), None)
    left = [member for member in known if member not in group_of]
    if rest is not None:
        group_of |= dict.fromkeys(left, rest)
    elif left:
        faults.append(ConfigError(KEY, f"in no group: {', '.join(left)}", "name them, or give one group the word rest"))
    if faults:
        raise Faults(faults)
    original = table["dx"].astype(object)
    dx = pd.Categorical(original.map(group_of), categories=list(groups))
    out = table.assign(dx=dx, dx_original=original)
    out.attrs = dict(table.attrs)
    return out
