"""`trainonce list`."""

from trainonce.cli import display, results
from trainonce.cli.known import DATA_SETS, FAMILIES, FILES
from trainonce.cli.options import Json


def list_names(as_json: Json = False) -> None:
    """List the recipes, data sets and geometries."""
    from trainonce.recipes import RECIPES

    if as_json:
        from trainonce.models import FAMILIES as KNOWN

        settings = {name: dict(family.settings_type.geometries) for name, family in KNOWN.items()}
        recipes = {name: recipe.model_dump(mode="json") for name, recipe in RECIPES.items()}
        display.print_json({"recipes": recipes, "data": DATA_SETS, "families": settings})
        return
    display.out.print(results.recipes_table(list(RECIPES.values())))
    display.out.print(f"\nData sets: {', '.join(DATA_SETS)}, or the path of an image folder or {FILES} file")
    display.out.print("Families, and their geometries (tiny: for images of about 8 pixels; light: for minutes):")
    for name, geometries in FAMILIES.items():
        display.out.print(f"  {name}: {', '.join(geometries)}")
