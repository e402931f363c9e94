"""The choices that the paper's recipes speak of."""

from trainonce.space import Choice, SearchSpace


def space() -> SearchSpace:
    """One stage of the paper's space."""
    choices = [Choice(name="stage1.depth", values=(2, 3, 4))]
    for block in range(1, 5):
        for name, values in (("kernel_size", (3, 5, 7)), ("expand_ratio", (3, 4, 6))):
            allowed = {depth: values for depth in (2, 3, 4) if depth >= block}
            full_name = f"stage1.block{block}.{name}"
            choices.append(Choice(name=full_name, values=values, parent="stage1.depth", allowed=allowed))
    return SearchSpace(tuple(choices))
