"""Which run goes on: known from the files of run folders, before torch is imported."""

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tricklab.cli.overrides import list_overrides
from tricklab.cli.values import show
from tricklab.errors import UserError

SECRET = re.compile(
    r"(^|[._-])((api|access|private|secret)[_-]?key|token|secret|password|passwd|passphrase|credentials?)$",
    re.IGNORECASE,
)


def redact_secrets(config: Any) -> Any:
    """Put stars for the values of keys that are secrets, at any depth."""
    if isinstance(config, list):
        return [redact_secrets(part) for part in config]
    if not isinstance(config, Mapping):
        return config
    return {
        key: "***" if is_secret(str(key), value) else redact_secrets(value)
        for key, value in config.items()
    }


def is_secret(key: str, value: Any) -> bool:
    """Whether a value is nobody's business: a text under a name that says so."""
    return (
        isinstance(value, str)
        and value not in ("", "true", "false", "null")
        and bool(SECRET.search(key))
    )


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
