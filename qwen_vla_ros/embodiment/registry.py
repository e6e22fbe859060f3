# SPDX-License-Identifier: Apache-2.0
"""Embodiments by name or by file."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from qwen_vla_ros import resources
from qwen_vla_ros.embodiment.document import MAX_BYTES, parse_document
from qwen_vla_ros.embodiment.errors import EmbodimentError, Fault, value_text
from qwen_vla_ros.embodiment.rules import find_faults
from qwen_vla_ros.embodiment.schema import WORDS, Embodiment


def list_embodiments() -> list[str]:
    """Names of the embodiments that come with the package, sorted."""
    return resources.embodiment_names()


def load_embodiment(name_or_path: str | os.PathLike[str]) -> Embodiment:
    """Load an embodiment that comes with the package by its name, or any by its file.

    Text that ends in .yaml or .yml, or that has a path separator, is a file.

    Raises:
        EmbodimentError: with every fault, its line and its field.
    """
    return _load_file(embodiment_file(name_or_path))


def embodiment_file(name_or_path: str | os.PathLike[str]) -> Path:
    """File of an embodiment, as `load_embodiment` finds it; a path need not exist.

    Raises:
        EmbodimentError: no embodiment of this name comes with the package.
    """
    if not isinstance(name_or_path, str):
        return Path(name_or_path)
    path = resources.embodiment_path(name_or_path)
    if path is None:
        known = list_embodiments()
        close = difflib.get_close_matches(name_or_path, known, n=1)
        hint = f"'{close[0]}'?" if close else ", ".join(known)
        raise EmbodimentError(f"embodiment '{name_or_path}'", [Fault((), "no embodiment of this name", hint)])
    return path


def parse_embodiment(data: Mapping[str, Any], source: str = "embodiment") -> Embodiment:
    """An embodiment from plain values, as they stand in the YAML.

    Raises:
        EmbodimentError: with every fault and its field.
    """
    embodiment, faults = _validate(data)
    if embodiment is None:
        raise EmbodimentError(source, faults)
    return embodiment


def _load_file(path: Path) -> Embodiment:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise EmbodimentError(
            path, [Fault((), f"no readable file ({reason})", "an embodiment YAML")]
        ) from error
    return parse_content(content, path)


def parse_content(content: bytes, path: Path) -> Embodiment:
    """An embodiment from the content of a file.

    Args:
        path: where it lies, or will lie: its name is that of the embodiment.

    Raises:
        EmbodimentError: with every fault, its line and its field.
    """
    document = parse_document(content)
    faults = list(document.faults)
    embodiment = None
    _locate(document.data, path.parent)
    if document.data is not None or not faults:
        embodiment, more = _validate(document.data)
        # A value that could not be read is None in the data; the reason is already among the faults.
        read = {fault.path for fault in faults}
        faults += [fault.at(document.line_of(fault.path)) for fault in more if fault.path not in read]
    name = document.data.get("name") if isinstance(document.data, dict) else None
    if isinstance(name, str) and name != path.stem:
        expected = f"'{path.stem}', as the file is named"
        faults.append(Fault(("name",), repr(name), expected, document.line_of(("name",))))
    if faults or embodiment is None:
        faults.sort(key=lambda fault: fault.line or 0)
        raise EmbodimentError(path, faults)
    return embodiment


def _locate(data: Any, folder: Path) -> None:
    """Make the paths of models, which are relative to the YAML, absolute."""
    groups = data.get("actions") if isinstance(data, dict) else None
    for group in groups if isinstance(groups, list) else []:
        chain = group.get("ik") if isinstance(group, dict) else None
        if isinstance(chain, dict) and isinstance(chain.get("urdf"), str):
            chain["urdf"] = str(folder.resolve() / chain["urdf"])
    simulation = data.get("simulation") if isinstance(data, dict) else None
    model = simulation.get("model") if isinstance(simulation, dict) else None
    if isinstance(simulation, dict) and isinstance(model, str) and "package" not in simulation:
        simulation["model"] = str(folder.resolve() / model)


def _validate(data: Any) -> tuple[Embodiment | None, list[Fault]]:
    embodiment, faults = None, []
    try:
        embodiment = Embodiment.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        faults = [_fault(detail, data) for detail in details if not _follows(detail)]
    taken = {fault.path for fault in faults}
    faults += [fault for fault in find_faults(data) if fault.path not in taken]
    return (None if faults else embodiment), faults


def _follows(error: ErrorDetails) -> bool:
    """True of a list that only seems too short because pydantic counts valid entries alone."""
    return error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]


def _fault(error: ErrorDetails, data: Any) -> Fault:
    path = _path(error["loc"], data)
    kind, ctx = error["type"], error.get("ctx", {})
    found = value_text(error["input"])
    expected = {
        "float_type": "a number",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "bool_type": "true or false",
        "string_type": "text",
        "tuple_type": "a list",
        "dict_type": "a mapping",
        "model_type": "a mapping",
        "model_attributes_type": "a mapping",
        "finite_number": "a finite number",
        "greater_than": f"more than {ctx.get('gt')}",
        "greater_than_equal": f"at least {ctx.get('ge')}",
        "less_than_equal": f"at most {ctx.get('le')}",
        "too_short": f"at least {ctx.get('min_length')}",
        "too_long": f"at most {ctx.get('max_length')}",
        "string_too_short": f"{ctx.get('min_length')} or more characters",
        "string_too_long": f"at most {ctx.get('max_length')} characters",
        "string_pattern_mismatch": WORDS.get(
            str(ctx.get("pattern")), f"text that matches {ctx.get('pattern')}"
        ),
        "literal_error": str(ctx.get("expected")),
        "union_tag_invalid": str(ctx.get("expected_tags")),
        "union_tag_not_found": f"a mapping with {ctx.get('discriminator')}",
    }.get(kind, error["msg"])
    if kind == "missing":
        text = _description(error["loc"])
        return Fault(path, "nothing", f"a value ({text})" if text else "a value")
    if kind == "extra_forbidden":
        allowed = list(_fields_at(error["loc"][:-1]))
        close = difflib.get_close_matches(str(path[-1]), allowed, n=1)
        return Fault(path, "an unknown key", f"'{close[0]}'" if close else f"one of {', '.join(allowed)}")
    if kind == "union_tag_invalid":
        key = str(ctx.get("discriminator")).strip("'")
        return Fault((*path, key), repr(ctx.get("tag")), expected)
    if kind in ("too_short", "too_long"):
        found = f"{ctx.get('actual_length')} entries"
    return Fault(path, found, expected)


def _path(loc: tuple[int | str, ...], data: Any) -> tuple[int | str, ...]:
    """The path in the file: pydantic's location without the tags of its unions."""
    path: list[int | str] = []
    for k, element in enumerate(loc):
        if isinstance(data, dict) and element in data:
            path.append(element)
            data = data[str(element)]
        elif isinstance(data, (list, tuple)) and isinstance(element, int) and element < len(data):
            path.append(element)
            data = data[element]
        elif k == len(loc) - 1 and isinstance(data, dict) and element != "[key]":
            path.append(element)
    return tuple(path)


def _fields_at(loc: tuple[int | str, ...]) -> dict[str, FieldInfo]:
    """Fields that the schema knows at a location, by key."""
    models: list[type[BaseModel]] = [Embodiment]
    for element in loc:
        if isinstance(element, int):
            continue
        fields = [
            field
            for model in models
            for name, field in model.model_fields.items()
            if (field.alias or name) == element
        ]
        if fields:
            models = [model for field in fields for model in _models_in(field.annotation)]
        else:
            models = [model for model in models if element in _tags(model)]
    return {field.alias or name: field for model in models for name, field in model.model_fields.items()}


def _description(loc: tuple[int | str, ...]) -> str | None:
    field = _fields_at(loc[:-1]).get(str(loc[-1])) if loc else None
    return field.description if field else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is None:
        return []
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    for key in ("kind", "type"):
        if key in model.model_fields:
            return get_args(model.model_fields[key].annotation)
    return ()
