"""Secrets: refused in configs, redacted in recorded configs and patches."""

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tricklab.cli.overrides import list_overrides
from tricklab.cli.values import show
from tricklab.errors import UserError

# Keys whose values are secrets
SECRET = re.compile(
    r"(^|[._-])((api|access|private|secret)[_-]?key|token|secret|password|passwd|passphrase"
    r"|credentials?)$",
    re.IGNORECASE,
)

# Values that are no secrets themselves
PLACEHOLDER = re.compile(r"\$\{oc\.env:\w+(,\s*null)?\}|\?\?\?|null|~")

# In any file: password = "x", "password": "x", password: str = "x"
QUOTED_VALUE = re.compile(
    r"""(?P<key>[\w-]+)(?P<is>["']?\s*(:\s*[\w. |\[\]]+=|[:=])\s*)(?P<value>"[^"]*"|'[^']*')"""
)

# In YAML: password: x
BARE_VALUE = re.compile(
    r"""(?P<key>[\w-]+)(?P<is>["']?\s*:\s+)(?P<value>\$\{[^}]*\}|[^\s"'#{\[|>][^#,}\]\n]*)"""
)

# In YAML: a key with its value on the lines below
BLOCK = re.compile(
    r"[ +-](?P<indent>[\s-]*)[\"']?(?P<key>[\w-]+)[\"']?\s*:\s*([|>][\d+-]*)?\s*(#.*)?$"
)


def redact_secrets(config: Any) -> Any:
    """Return a config with the values of secrets replaced by stars, at any depth."""
    if isinstance(config, list):
        return [redact_secrets(part) for part in config]
    if not isinstance(config, Mapping):
        return config
    redacted = {}
    for key, value in config.items():
        redacted[key] = "***" if is_secret(str(key), value) else redact_secrets(value)
    return redacted


def is_secret(key: str, value: Any) -> bool:
    """Whether a value looks like a secret: a text under a key such as `token`."""
    is_text = isinstance(value, str) and value not in ("", "true", "false", "null")
    return is_text and bool(SECRET.search(key))


def check_secrets(config: DictConfig) -> None:
    """Refuse plain secrets in files and overrides, as Hydra writes both into the run folder.

    Raises UserError: a secret that is not an environment variable.
    """
    hydra = config.hydra
    for override in (*list_overrides(hydra), *list_overrides(hydra, "hydra")):
        key, _, value = override.lstrip("+").partition("=")
        inner = re.findall(r"([\w-]+)['\"]?\s*:\s*([^][{},]+)", value)
        refuse_secrets(dict(inner), f"{key}: ")
        refuse_secrets({key: value})
    refuse_secrets(OmegaConf.to_container(config, resolve=False))


def refuse_secrets(node: Any, path: str = "") -> None:
    """Raise UserError for the first plain secret in nested lists and dicts."""
    if isinstance(node, list):
        for part in node:
            refuse_secrets(part, path)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if isinstance(value, dict | list):
            refuse_secrets(value, f"{path}{key}.")
        elif is_secret(str(key), show(value)) and not PLACEHOLDER.fullmatch(str(value)):
            problem = f"{path}{key}=*** would be written into the run folder"
            expected = f"give it as an environment variable: {key}=${{oc.env:NAME}}"
            raise UserError(f"{problem}; {expected}")


def redact_patch(patch: str) -> str:
    """Return a patch with the values of secrets replaced by stars.

    Quoted values are redacted in any file, bare values and blocks in YAML only.
    """
    lines: list[str] = []
    in_yaml = False
    block_indent = -1  # indentation of a secret key with its value on the lines below; -1: none
    for line in patch.splitlines(keepends=True):
        if line.startswith("diff --git "):
            in_yaml = bool(re.search(r"\.ya?ml\"?$", line.strip()))
            block_indent = -1
        content = line[1:]
        indent = len(content) - len(content.lstrip())
        if content.strip() and indent <= block_indent:
            block_indent = -1
        if content.strip() and block_indent >= 0:
            lines.append(f"{line[: indent + 1]}***\n")
            continue
        if in_yaml and (match := BLOCK.match(line)) and SECRET.search(match["key"]):
            block_indent = len(match["indent"])
        lines.append(redact_line(line, in_yaml))
    return "".join(lines)


def redact_line(line: str, in_yaml: bool) -> str:
    line = QUOTED_VALUE.sub(redact_match, line)
    return BARE_VALUE.sub(redact_match, line) if in_yaml else line


def redact_match(match: re.Match[str]) -> str:
    """Return the text of a key and its value, with stars for a secret."""
    value = match["value"].rstrip()
    if not SECRET.search(match["key"]) or PLACEHOLDER.fullmatch(value.strip("\"'")):
        return match[0]
    quotation = value[0] if value[0] in "\"'" else ""
    trailing = match["value"][len(value) :]
    return f"{match['key']}{match['is']}{quotation}***{quotation}{trailing}"
