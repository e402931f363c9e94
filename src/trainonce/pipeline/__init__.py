"""The story: one function a stage, each on a run directory. A command reads its options, calls one, and prints.

Paths are `str` or `Path`; options have the commands' names and defaults; results are typed. `on_progress` and the like
are called while they work, `should_stop` is asked whether to end. They are imported when they are first asked for.
"""

from typing import TYPE_CHECKING

from trainonce.lazy import names_from

if TYPE_CHECKING:
    from trainonce.pipeline.demonstrating import demo
    from trainonce.pipeline.evaluating import evaluate
    from trainonce.pipeline.evaluating_one import evaluate_subnet
    from trainonce.pipeline.exporting import export
    from trainonce.pipeline.extracting import extract
    from trainonce.pipeline.finetuning import finetune
    from trainonce.pipeline.fitting_images import fit
    from trainonce.pipeline.hub import from_pretrained, push_to_hub
    from trainonce.pipeline.measuring import measure
    from trainonce.pipeline.reporting import draw, report
    from trainonce.pipeline.searching import search
    from trainonce.pipeline.shipping import ship
    from trainonce.pipeline.studying import study
    from trainonce.pipeline.training import train
    from trainonce.pipeline.verifying import verify
else:
    __getattr__ = names_from(
        __name__,
        {
            "demonstrating": ("demo",),
            "evaluating": ("evaluate",),
            "evaluating_one": ("evaluate_subnet",),
            "exporting": ("export",),
            "extracting": ("extract",),
            "finetuning": ("finetune",),
            "fitting_images": ("fit",),
            "hub": ("from_pretrained", "push_to_hub"),
            "measuring": ("measure",),
            "reporting": ("draw", "report"),
            "searching": ("search",),
            "shipping": ("ship",),
            "studying": ("study",),
            "training": ("train",),
            "verifying": ("verify",),
        },
    )

__all__ = [
    "demo",
    "draw",
    "evaluate",
    "evaluate_subnet",
    "export",
    "extract",
    "finetune",
    "fit",
    "from_pretrained",
    "measure",
    "push_to_hub",
    "report",
    "search",
    "ship",
    "study",
    "train",
    "verify",
]
