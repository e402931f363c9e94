"""The model card of a subnet: what a person reads before using it, and what the Hugging Face Hub indexes.

YAML front matter and Markdown (https://huggingface.co/docs/hub/model-cards). Needs nothing but a description.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from trainonce.data.picture import square_picture
from trainonce.names import plain, plural
from trainonce.settings import JsonObject
from trainonce.subnets.description import FinetunedFrom, RecordedScore, SubnetDescription, TrainedBy

HUB_DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "mnist": "ylecun/mnist",
}
"""The names that data sets of our table have on the Hub; each has a test split of its own."""
MOST_CLASSES = 100
"""How many classes a card names; the others are in config.json."""

LOADING = """# {title}

A convolutional network that classifies images of {channels} and {resolution} x {resolution} pixels into
{classes} classes, taken out of a once-for-all supernet with trainonce.

| | |
|---|---|
| MACs | {macs:,} |
| parameters | {params:,} |
| architecture | {architecture} |

## Loading it

It needs torch and safetensors, not trainonce; `model.py` in this directory builds it:

```python
import sys; sys.path.insert(0, "path/of/this/directory")
from model import load
network = load("path/of/this/directory")  # in evaluation mode, on the CPU
```

`huggingface_hub.snapshot_download("owner/name")` gives the path of this directory where it is on the Hub. With
trainonce, which checks the files and executes none of them, `trainonce.from_pretrained("owner/name")` gives the network
and its description, and `trainonce predict` names what is in an image.

## Preprocessing

{layout}, with mean {mean} and std {std} of pixels in 0..1. Scores are of pictures that were turned
upright and laid over white where they are transparent, and of which the central square was resized ({interpolation}) to
{image_size} x {image_size}; the network itself brings that to {resolution} x {resolution}.

```python
import numpy as np
import torch
from PIL import Image, ImageOps


{square_picture}

square = square_picture(Image.open("picture.jpg"), {image_size}, "{mode}", "{interpolation}")
pixels = torch.from_numpy(np.array(square)).view({image_size}, {image_size}, {depth}).permute(2, 0, 1) / 255
mean, std = torch.tensor({mean}).view(-1, 1, 1), torch.tensor({std}).view(-1, 1, 1)
with torch.inference_mode():
    logits = network(((pixels - mean) / std)[None])  # [1, {classes}]
```
"""

SCORES_HEAD = ("| split | top-1 | 95% interval | cross-entropy | images |", "|---|---|---|---|---|")
LIMITS = """## Limits

- It knows the classes above and no others: every image gets one of them. Its probabilities are not calibrated.
- The scores are of images from the same source as those it was trained on. How it does on others, on groups of people
  or in places that they leave out, has not been measured.
- The validate score guided choices and is therefore somewhat flattering.
"""


def model_card(description: SubnetDescription) -> str:
    """The card of a subnet with this description, which may lack scores and how it was trained."""
    front = "\n".join(["---", *_yaml(_front_matter(description)), "---"])
    parts = (_loading(description), _classes(description), _scores(description), _training(description), LIMITS)
    return front + "\n\n" + "\n".join(part for part in parts if part)


def _title(description: SubnetDescription) -> str:
    data = description.trained.data if description.trained else None
    return f"A subnet of {plain(description.macs / 1e6, 3)} million MACs" + (f" for {data}" if data else "")


def _front_matter(description: SubnetDescription) -> JsonObject:
    trained = description.trained or TrainedBy()
    data = HUB_DATASETS.get(trained.data or "") if trained.published else None
    front: JsonObject = {"library_name": "trainonce", "pipeline_tag": "image-classification"}
    if description.license:
        front["license"] = description.license
    front["tags"] = ["image-classification", "once-for-all", "neural-architecture-search", "pytorch", "safetensors"]
    if data:
        front["datasets"] = [data]
    front["metrics"] = ["accuracy"]
    test = (description.scores or {}).get("test")
    if data and test:
        front["model-index"] = [
            {
                "name": _title(description),
                "results": [
                    {
                        "task": {"type": "image-classification", "name": "Image Classification"},
                        "dataset": {"name": trained.data, "type": data, "split": "test"},
                        "metrics": [{"type": "accuracy", "value": round(test.top1 / 100, 6), "name": "top-1 accuracy"}],
                    }
                ],
            }
        ]
    return front


def _loading(description: SubnetDescription) -> str:
    given = description.preprocessing
    size = given.image_size or given.resolution
    return LOADING.format(
        resolution=given.resolution,
        channels=plural(given.channels, "channel"),
        depth=given.channels,
        layout=given.layout,
        title=_text(_title(description)),
        image_size=size,
        interpolation=given.interpolation,
        square_picture=inspect.getsource(square_picture),
        mean=[float(number) for number in given.mean],
        std=[float(number) for number in given.std],
        mode="L" if given.channels == 1 else "RGB",
        classes=len(description.classes),
        macs=description.macs,
        params=description.params,
        architecture=_text(description.architecture),
    )


def _classes(description: SubnetDescription) -> str:
    names = description.classes
    listed = ", ".join(f"{number} {_text(name)}" for number, name in enumerate(names[:MOST_CLASSES]))
    others = f", and {len(names) - MOST_CLASSES} more in config.json" if len(names) > MOST_CLASSES else ""
    return f"## Classes\n\nOutput k is the logit of class k: {listed}{others}.\n"


def _scores(description: SubnetDescription) -> str:
    rows = [
        f"| {_text(split)} | {score.top1:.2f}% | {_interval(score)} | {score.loss:.4f} | {score.images:,} |"
        for split, score in (description.scores or {}).items()
    ]
    if not rows:
        return ""
    return "\n".join(["## Scores", "", *SCORES_HEAD, *rows, ""])


def _interval(score: RecordedScore) -> str:
    return "{:.1f} to {:.1f}".format(*score.score().interval()) if score.images else ""


def _training(description: SubnetDescription) -> str:
    trained = description.trained
    if trained is None or not trained.model_fields_set:
        return ""
    found = trained.provenance or {}
    facts = {
        "images": trained.data,
        "strategy of the supernet": trained.recipe,
        "epochs of the supernet": None if trained.epochs is None else f"{trained.epochs:.4g}",
        "seed": trained.seed,
        "batch norms": "recalibrated for this subnet" if description.recalibrated else "as the supernet's",
        "with": ", ".join(f"{name} {found[name]}" for name in ("trainonce", "torch", "device") if name in found),
        "fine-tuned": _finetuned(trained.finetuned),
    }
    lines = [f"- {name}: {_text(fact)}" for name, fact in facts.items() if fact not in (None, "")]
    return "\n".join(["## How it was trained", "", *lines, ""])


def _finetuned(how: FinetunedFrom | None) -> str:
    if how is None:
        return ""
    before, after = how.before["validate"], how.after["validate"]
    taught = ", distilled from the supernet's largest network" if how.settings.distill else ""
    return (
        f"{round(how.settings.epochs, 2):g} epochs on its own{taught}; top-1 on validate {before.top1:.2f}% before and "
        f"{after.top1:.2f}% after, loss {before.loss:.4f} and {after.loss:.4f}; epoch {how.epoch} is kept"
    )


def _text(value: object) -> str:
    """A value as Markdown text in one line that means nothing but itself."""
    plain = "".join(char if char.isprintable() else " " for char in str(value))
    return "".join(f"\\{char}" if char in "\\`*_[]<>|#~" else char for char in plain)


def _yaml(value: Mapping[str, Any] | Sequence[Any], pad: str = "") -> list[str]:
    """Block-style YAML lines of nested mappings and lists."""
    lines = []
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(inner, Mapping | list):
                lines += [f"{pad}{key}:", *_yaml(inner, pad + "  ")]
            else:
                lines.append(f"{pad}{key}: {_scalar(inner)}")
        return lines
    for inner in value:
        entry = _yaml(inner, pad + "  ") if isinstance(inner, Mapping | list) else [f"{pad}  {_scalar(inner)}"]
        lines += [f"{pad}- {entry[0].lstrip()}", *entry[1:]]
    return lines


def _scalar(value: str | float) -> str:
    if not isinstance(value, str):
        return str(value)
    escaped = {'"': '\\"', "\\": "\\\\"}
    return '"' + "".join(escaped.get(c, c if c.isprintable() else f"\\U{ord(c):08X}") for c in value) + '"'
