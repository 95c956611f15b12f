"""Update conf/schema.json, by which editors complete and check the YAML files of experiments.

python scripts/schema.py
    after an option or the comment behind a key has changed
"""

import sys

from tricklab.cli.launch import launch
from tricklab.cli.schema import SCHEMA, update_schema
from tricklab.errors import UserError


def main() -> None:
    if sys.argv[1:]:
        raise UserError(f"{sys.argv[1]}: expected no argument")
    print(f"{SCHEMA} {'is updated' if update_schema() else 'was up to date'}")


if __name__ == "__main__":
    launch(main, __doc__)
