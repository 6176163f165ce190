"""List the questions: what was found, when, on what, and how to find out again.

python -m benchmarks [--json | --markdown]
"""

import json

from benchmarks.common.answers import argument_parser
from benchmarks.common.questions import read_questions, table

FIELDS = ("topic", "name", "text", "headline", "machine", "date", "command")


def main() -> None:
    parser = argument_parser(__doc__)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as a JSON list")
    form.add_argument("--markdown", action="store_true", help="as the table of README.md")
    args = parser.parse_args()
    if args.markdown:
        print(table(), end="")
    elif args.json:
        print(json.dumps([{name: getattr(one, name) for name in FIELDS} for one in read_questions()], indent=1))
    else:
        for one in read_questions():
            when = f"{one.date}, {one.machine}" if one.answers else "open"
            print(f"{one.topic}/{one.name} ({when})\n  {one.text}\n  {one.headline}\n  $ {one.command}\n")


if __name__ == "__main__":
    main()
