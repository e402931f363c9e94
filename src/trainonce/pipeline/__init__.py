"""The story: one function a stage, each on a run directory. A command reads its options, calls one, and prints.

Paths are `str` or `Path`; options have the commands' names and defaults; results are typed. `on_progress` and the like
are called while they work, `should_stop` is asked whether to end. They are imported when they are first asked for.
"""

from typing import TYPE_CHECKING

from trainonce.lazy import names_from

if TYPE_CHECKING:
    from trainonce.pipeline.evaluating import evaluate
    from trainonce.pipeline.extracting import extract
    from trainonce.pipeline.fitting import fit
    from trainonce.pipeline.hub import from_pretrained, push_to_hub
    from trainonce.pipeline.reporting import draw, report
    from trainonce.pipeline.searching import search
    from trainonce.pipeline.training import train
    from trainonce.pipeline.verifying import verify
else:
    __getattr__ = names_from(
        __name__,
        {
            "evaluating": ("evaluate",),
            "extracting": ("extract",),
            "fitting": ("fit",),
            "hub": ("from_pretrained", "push_to_hub"),
            "reporting": ("draw", "report"),
            "searching": ("search",),
            "training": ("train",),
            "verifying": ("verify",),
        },
    )

__all__ = [
    "draw",
    "evaluate",
    "extract",
    "fit",
    "from_pretrained",
    "push_to_hub",
    "report",
    "search",
    "train",
    "verify",
]
