"""Diagnoses put together into groups, malignant and benign say: the classes that a run tells apart."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Literal

import pandas as pd

from skinmtl.errors import ConfigError, Faults, SkinmtlError

REST = "rest"
KEY = "data.diagnoses"
Groups = Mapping[str, Literal["rest"] | Sequence[str]]


def check_groups(groups: Groups) -> None:
    """Refuse groups that no data could have.

    Raises:
        Faults: fewer than two groups, a group of nothing, two rests, a diagnosis named twice, a name that is no word.
    """
    faults: list[SkinmtlError] = []
    if len(groups) < 2:
        faults.append(ConfigError(KEY, f"{len(groups)} groups", "name at least two classes, such as benign: rest"))
    homes: dict[str, str] = {}
    for name, members in groups.items():
        where = f"{KEY}.{name}"
        if not isinstance(name, str):
            # Hydra's grammar has no quotes for a key.
            fix = f'call it by a word, such as class_{name}; in a YAML file, "{name}" in quotes does, too'
            faults.append(ConfigError(where, f"{name!r} is no text, and groups have names", fix))
        if members != REST and (isinstance(members, str) or not members):
            what = f"{members!r} is no list of diagnoses"
            faults.append(ConfigError(where, what, "give one, such as [mel, bcc], or the word rest"))
            continue
        for member in [REST] if members == REST else members:
            if not isinstance(member, str):  # 1 and 01, or no and false, are one to YAML and two in a table
                what = f"{member!r} is no text, and diagnoses have names"
                faults.append(ConfigError(where, what, f'put it in quotes, as it stands in the table: "{member}"'))
                continue
            if member in homes:
                what = f"{member} stands in {homes[member]} already" if homes[member] != name else f"{member} twice"
                faults.append(ConfigError(where, what, "keep it in one group, once"))
            homes.setdefault(member, name)
    if faults:
        raise Faults(faults)


def named(groups: Groups | None) -> list[str]:
    """The diagnoses that groups name; none of them is a word for missing."""
    return [name for members in (groups or {}).values() if members != REST for name in members]


def grouped(table: pd.DataFrame, groups: Groups) -> pd.DataFrame:
    """The case table with the group of each diagnosis as `dx`, and the diagnosis itself as `dx_original`.

    The classes are the groups in their order. A missing diagnosis stays missing.

    Args:
        table: a case table, `dx` categorical.
        groups: names of diagnoses by the name of their group; the word rest stands for all that no group names.

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
