"""Settings: YAML plus overrides, checked against a schema, all faults named at once.

A schema is a tree of :class:`Settings` classes. An unknown key is a fault, never
ignored: a misspelt key that is ignored is a setting that silently keeps its default.
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

T = TypeVar("T", bound="Settings")

SettingsByPath = dict[str, Any]
"""Settings by dotted path, over others, in the order in which they are made: ``{model.gates: false}``."""


class UserError(ValueError):
    """Something the user gave cannot be used; the message says what and what to do."""


class ConfigError(UserError):
    """Every fault found in a configuration.

    Args:
        faults: One line each: ``where: what was wrong; expected ...; did you mean 'x'?``.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults: list[str] = list(faults)
        super().__init__("\n".join(self.faults))


class Settings(BaseModel):
    """Base of every schema: unknown keys are refused, values cannot change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def load_settings(schema: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """Read a YAML file, apply overrides and check the outcome.

    Args:
        schema: What the outcome must be.
        path: YAML file; ``None`` starts from the schema's defaults.
        overrides: ``"training.epochs=3"`` and the like, later ones win; values are read as YAML.

    Raises:
        ConfigError: All faults of the file and of the overrides together.
    """
    mapping = read_yaml(path) if path is not None else {}
    where = str(path) if path is not None else "settings"
    mapping, faults = with_overrides(mapping, overrides, schema)
    try:
        settings = validate(schema, mapping, where)
    except ConfigError as error:
        raise ConfigError(faults + error.faults) from None
    if faults:
        raise ConfigError(faults)
    return settings


def validate(schema: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Check a mapping against a schema.

    Args:
        schema: What the mapping must be.
        mapping: Plain values, as YAML gives them.
        where: Where the mapping comes from; named when the whole of it is wrong.

    Raises:
        ConfigError: One line per fault, with full dotted paths.
    """
    try:
        return schema.model_validate(dict(mapping))
    except ValidationError as error:
        raise ConfigError(faults_of(schema, mapping, error, where)) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping; a key given twice is a fault.

    Raises:
        ConfigError: The file is missing, is not YAML, or repeats a key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read ({error.strerror}); expected a YAML file"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not UTF-8 text; expected a YAML file"]) from None
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: is not valid YAML: {' '.join(str(error).split())}"]) from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError([f"{path}: holds a {type(content).__name__}; expected a mapping of settings"])
    return content


def with_overrides(
    mapping: Mapping[str, Any], overrides: Sequence[str], schema: type[BaseModel] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Apply ``"a.b=3"`` overrides to a copy of a mapping.

    Args:
        mapping: Plain values, as YAML gives them.
        overrides: Later ones win; values are read as YAML.
        schema: What the mapping is to be. Where that has settings by dotted path (`SettingsByPath`), the rest of an
            override's path is one of them.

    Returns:
        The changed copy, and one fault per override that could not be applied.
    """
    changed = _copy(mapping)
    faults: list[str] = []
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = _keys(dotted.strip(), schema)
        if not equals or not all(keys):
            faults.append(f"override {override!r}: expected 'path.to.setting=value'")
            continue
        try:
            value = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError:
            faults.append(f"{dotted}: the override's value {text!r} is not valid YAML")
            continue
        level = changed
        for depth, key in enumerate(keys[:-1]):
            if level.get(key) is None:
                level[key] = {}
            if not isinstance(level[key], dict):
                faults.append(
                    f"{dotted}: '{'.'.join(keys[: depth + 1])}' is a value, not a group of settings"
                )
                break
            level = level[key]
        else:
            level[keys[-1]] = value
    return changed, faults


def faults_of(
    schema: type[BaseModel], mapping: Mapping[str, Any], error: ValidationError, where: str
) -> list[str]:
    """Turn pydantic's errors into one readable line each, in the order of the schema."""
    lines: list[str] = []
    for details in error.errors(include_url=False):
        parts, parent, others = _locate(schema, mapping, details["loc"], details["type"])
        path = ".".join(str(part) for part in parts)
        cause = details.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            lines.extend(f"{path}.{fault}" if path else fault for fault in cause.faults)
            continue
        lines.append(f"{path or where}: {_explain(schema, parts, parent, others, dict(details))}")
    return list(dict.fromkeys(lines))


def closest(word: str, candidates: Sequence[str]) -> str | None:
    """The candidate a misspelt word most likely meant, if any is close."""
    matches = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    return matches[0] if matches else None


def suggestion(word: str, candidates: Sequence[str]) -> str:
    """``"; did you mean 'x'?"``, or nothing when no candidate is close."""
    match = closest(word, candidates)
    return f"; did you mean '{match}'?" if match else ""


class _Loader(yaml.SafeLoader):
    """YAML as people mean it.

    Of two equal keys YAML itself lets the last one win, which hides a mistake. And by YAML's first rules, which
    PyYAML keeps to, the words on, off, yes and no are truth values, as a key or as a country's code, and a day is
    no text.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key!r} stands twice", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


# Letter that a word begins with -> what it may mean.
_Loader.yaml_implicit_resolvers = {
    letter: [
        (tag, re.compile("^(?:true|True|TRUE|false|False|FALSE)$") if tag.endswith(":bool") else pattern)
        for tag, pattern in resolvers
        if not tag.endswith(":timestamp")
    ]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _keys(dotted: str, schema: Any) -> list[str]:
    """The keys that lead to a setting, one for each level."""
    keys = dotted.split(".")
    for depth, key in enumerate(keys[:-1], start=1):
        schema = _child(schema, key)
        if schema == SettingsByPath:
            return [*keys[:depth], ".".join(keys[depth:])]
    return keys


def _copy(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in mapping.items()}


def _explain(
    schema: type[BaseModel],
    parts: Sequence[str | int],
    parent: Any,
    others: Sequence[Any],
    details: Mapping[str, Any],
) -> str:
    kind, given, context = details["type"], details.get("input"), details.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown key" + _suggest_path(schema, parts, parent, others)
    if kind == "missing":
        return "is missing; expected a value"
    if kind in ("union_tag_invalid", "literal_error"):
        expected = str(context.get("expected_tags", context.get("expected")))
        key = str(context.get("discriminator", "")).strip("'")
        word = str(given[key] if isinstance(given, Mapping) and key in given else given)
        subject = f"{key} {word!r}" if key else repr(word)
        return f"{subject} is not known; expected {expected}" + suggestion(
            word, re.findall(r"'([^']*)'", expected)
        )
    if kind == "union_tag_not_found":
        return f"has no {context.get('discriminator')}; expected one"
    if kind == "value_error":
        return str(context.get("error", details["msg"]))
    message = str(details["msg"])
    expected = message.removeprefix("Input should be ").removeprefix("Value should be ")
    return (
        f"{given!r} is not usable; expected {expected}" if len(repr(given)) < 80 else f"expected {expected}"
    )


def _suggest_path(
    schema: type[BaseModel], parts: Sequence[str | int], parent: Any, others: Sequence[Any]
) -> str:
    """Suggest a sibling first, then a setting of that name in another group."""
    prefix = "".join(f"{part}." for part in parts[:-1])
    word = str(parts[-1])
    sibling = closest(word, _field_names(parent))
    owners = [_tag(other) for other in others if word in _field_names(other)]
    elsewhere = f" ({', '.join(owners)} {'has' if len(owners) == 1 else 'have'} it)" if owners else ""
    if sibling or owners:
        return elsewhere + (f"; did you mean '{prefix}{sibling}'?" if sibling else "")
    paths = list(_paths(schema))
    for path in paths:
        if path.rsplit(".", 1)[-1] == word:
            return f"; did you mean '{path}'?"
    fallback = suggestion(f"{prefix}{word}", paths)
    expected = ", ".join(_field_names(parent))
    return fallback or (f"; expected one of {expected}" if expected else "")


def _locate(
    schema: type[BaseModel], mapping: Mapping[str, Any], loc: Sequence[str | int], kind: str
) -> tuple[list[str | int], Any, list[Any]]:
    """Drop what pydantic adds to a location (union tags, type names), and find the schema around it.

    Returns:
        The location, the schema around it, and the alternatives to that where it is one of a union.
    """
    parts: list[str | int] = []
    others: list[Any] = []
    value: Any = mapping
    annotation: Any = schema
    parent: Any = schema
    for depth, part in enumerate(loc):
        members = _members(annotation)
        is_last = depth == len(loc) - 1
        in_mapping = isinstance(value, Mapping) and part in value
        in_list = isinstance(value, (list, tuple)) and isinstance(part, int) and part < len(value)
        tagged = [member for member in members if len(members) > 1 and part in _tags(member)]
        if tagged and not (in_mapping and is_last):
            annotation = tagged[0]
            parent = annotation
            others = [member for member in members if member is not annotation]
        elif in_mapping or in_list or (is_last and kind == "missing"):
            parts.append(part)
            if parent is not annotation:
                parent, others = annotation, []
            value = value[part] if in_mapping or in_list else None
            annotation = _child(annotation, part)
    return parts, parent, others


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, without ``None``; a plain type is its only one."""
    if isinstance(annotation, typing.TypeAliasType if hasattr(typing, "TypeAliasType") else ()):
        return _members(annotation.__value__)
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        inner = (member for arg in typing.get_args(annotation) for member in _members(arg))
        return tuple(member for member in inner if member is not type(None))
    return (annotation,)


def _tags(model: Any) -> set[Any]:
    """Values of a model's one-word literal fields, which is what tells members of a union apart."""
    if not _is_model(model):
        return set()
    literals = (field.annotation for field in model.model_fields.values())
    return {
        arg
        for literal in literals
        if typing.get_origin(literal) is typing.Literal
        for arg in typing.get_args(literal)
    }


def _tag(model: type[BaseModel]) -> str:
    """The word that tells a model from the others of a union."""
    return next(
        str(typing.get_args(field.annotation)[0])
        for field in model.model_fields.values()
        if typing.get_origin(field.annotation) is typing.Literal
    )


def _child(annotation: Any, part: str | int) -> Any:
    for member in _members(annotation):
        if _is_model(member):
            for name, field in member.model_fields.items():
                if part in (name, field.alias):
                    return field.annotation
        args = typing.get_args(member)
        if args:
            return args[-1] if isinstance(part, str) else args[0]
    return None


def _field_names(annotation: Any) -> list[str]:
    return [
        field.alias or name
        for member in _members(annotation)
        if _is_model(member)
        for name, field in member.model_fields.items()
    ]


def _paths(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in schema.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        yield path
        for member in _members(field.annotation):
            if _is_model(member):
                yield from _paths(member, f"{path}.")


def _is_model(annotation: Any) -> typing.TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as ``a.b.c`` -> text; lists and empty mappings as JSON, ``None`` as ``null``."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value)
    return flat
