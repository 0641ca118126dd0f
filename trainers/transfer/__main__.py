"""`python -m trainers.transfer` writes down what the methods say of themselves, for `trainers.catalogue`."""

import json

from trainers.catalogue import FILE
from trainers.transfer import METHODS


def generated() -> str:
    """What `catalogue.json` must hold, by the methods' own files."""
    described = {
        name: {
            "abbreviation": method.abbreviation,
            "paper": vars(method.paper),
            "parameters": method.Options.model_json_schema()["properties"],
        }
        for name, method in METHODS.items()
    }
    return json.dumps(described, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(generated(), encoding="utf-8")
