"""Groups of diagnoses as a config gives them: malignant and benign, say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from skinmtl.errors import ConfigError, Faults, SkinmtlError

REST = "rest"
KEY = "data.diagnoses"
Groups = Mapping[str, Literal["rest"] | Sequence[str]]


def check_groups(groups: Groups) -> None:
    """Refuse groups that no data could have.

    Raises:
        Faults: fewer than two groups, a group of nothing, two rests, a diagnosis named twice, a name that is no word.
    """
    if not isinstance(groups, Mapping):
        raise Faults(
            [ConfigError(KEY, f"{groups!r} is no dict of groups", "give one, such as {benign: rest, malignant: [mel]}")]
        )
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
