"""Secrets: refused in a config, which Hydra writes into the run folder, and starred in `git.diff`."""

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tricklab.cli import list_overrides
from tricklab.errors import UserError
from tricklab.resume import SECRET, is_secret
from tricklab.values import show

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


def check_secrets(config: DictConfig) -> None:
    """Refuse a plain secret, whichever file or override it comes from: Hydra writes the config into the run folder."""
    for word in (*list_overrides(config.hydra), *list_overrides(config.hydra, "hydra")):
        key, _, value = word.lstrip("+").partition("=")
        within = re.findall(r"([\w-]+)['\"]?\s*:\s*([^][{},]+)", value)
        refuse_secrets(dict(within), f"{key}: ")
        refuse_secrets({key: value})
    refuse_secrets(OmegaConf.to_container(config, resolve=False))


def refuse_secrets(node: Any, path: str = "") -> None:
    if isinstance(node, list):
        for part in node:
            refuse_secrets(part, path)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if isinstance(value, dict | list):
            refuse_secrets(value, f"{path}{key}.")
        elif is_secret(str(key), show(value)) and not ENVIRONMENT.fullmatch(str(value)):
            said = f"{path}{key}=*** would be written into the run folder"
            raise UserError(f"{said}; give it as an environment variable: {key}=${{oc.env:NAME}}")


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
