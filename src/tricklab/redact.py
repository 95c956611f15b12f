"""Secrets in a patch: `git.diff` holds configs and code that a run was made with, but not their passwords."""

import re

from tricklab.resume import SECRET

QUOTED = re.compile(  # password = "x", "password": "x", password: str = "x"
    r"""(?P<key>[\w-]+)(?P<is>["']?\s*(:\s*[\w. |\[\]]+=|[:=])\s*)(?P<value>"[^"]*"|'[^']*')"""
)
BARE = re.compile(
    r"""(?P<key>[\w-]+)(?P<is>["']?\s*:\s+)(?P<value>\$\{[^}]*\}|[^\s"'#{\[|>][^#,}\]\n]*)"""
)
BLOCK = re.compile(
    r"[ +-](?P<indent>[\s-]*)[\"']?(?P<key>[\w-]+)[\"']?\s*:\s*([|>][\d+-]*)?\s*(#.*)?$"
)
ENVIRONMENT = re.compile(r"\$\{oc\.env:\w+(,\s*null)?\}|\?\?\?|null|~")  # no secrets themselves


def redact_patch(patch: str) -> str:
    """Put stars for the values of keys such as `token`: where quoted in any file, in YAML also without quotes."""
    lines: list[str] = []
    in_yaml, block = False, -1  # the indentation of a key whose value is the lines below it
    for line in patch.splitlines(keepends=True):
        if line.startswith("diff --git "):
            in_yaml, block = bool(re.search(r"\.ya?ml\"?$", line.strip())), -1
        indent = len(line[1:]) - len(line[1:].lstrip())
        if block >= 0 and line[1:].strip() and indent <= block:
            block = -1
        if block >= 0 and line[1:].strip():
            lines.append(f"{line[: indent + 1]}***\n")
            continue
        if in_yaml and (match := BLOCK.match(line)) and SECRET.search(match["key"]):
            block = len(match["indent"])
        line = QUOTED.sub(star, line)
        lines.append(BARE.sub(star, line) if in_yaml else line)
    return "".join(lines)


def star(match: re.Match[str]) -> str:
    value = match["value"].rstrip()
    if not SECRET.search(match["key"]) or ENVIRONMENT.fullmatch(value.strip("\"'")):
        return match[0]
    quote = value[0] if value[0] in "\"'" else ""
    return f"{match['key']}{match['is']}{quote}***{quote}{match['value'][len(value) :]}"
