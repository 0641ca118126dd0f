"""`python -m trainers.transfer` writes the methods' papers and parameters to a file, for `trainers.catalogue`."""

import json

from trainers.catalogue import FILE
from trainers.transfer import METHODS


def generated() -> str:
    """What `catalogue.json` must contain, according to the methods' own files."""
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
