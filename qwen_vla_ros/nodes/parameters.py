# SPDX-License-Identifier: Apache-2.0
"""The reference of parameters, from the code that declares them.

python -m qwen_vla_ros.nodes.parameters > docs/parameters.md
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NODES = ("policy", "executor", "visualizer", "rerun", "sim")
HEADER = """# Parameters

Made from the code by `python -m qwen_vla_ros.nodes.parameters`; do not edit. All are read-only: set them at
start, with `-p NAME:=VALUE` after `--ros-args` or in a file for `params_file:=` of the launch files:

```yaml
/**/executor:
  ros__parameters:
    default_time_limit: 20.0
```

Every node has ROS's own `use_sim_time` too. Limits, rates and ages belong to the robot and are in its YAML
([embodiments](embodiments.md)).
"""


@dataclass(frozen=True)
class Parameter:
    """A declared parameter. bounds: inclusive, or None."""

    name: str
    default: bool | int | float | str
    description: str
    bounds: tuple[float, float] | None


def declared(module: Path, where: str | None = None) -> Iterator[Parameter]:
    """Parameters that `declare(self, ...)` declares in a module, or in one class of it."""
    tree: ast.AST = ast.parse(module.read_text())
    if where is not None:
        tree = next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == where)
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "declare"
    ]
    for call in sorted(calls, key=lambda call: call.lineno):
        name, default, text, *bounds = (_value(argument, tree, module) for argument in call.args[1:])
        yield Parameter(name, default, text, tuple(bounds) if bounds else None)


def _value(expression: ast.expr, tree: ast.AST, module: Path) -> Any:
    """Of a constant expression such as 2**31 - 1, or of a name that is given one in `tree`."""
    if isinstance(expression, ast.Name):
        given = [n for n in ast.walk(tree) if isinstance(n, ast.Assign) and len(n.targets) == 1]
        expression = next(n.value for n in given if getattr(n.targets[0], "id", "") == expression.id)
    return eval(compile(ast.Expression(expression), str(module), "eval"), {"__builtins__": {}})


def reference() -> str:
    """The page, in Markdown."""
    common = list(declared(HERE / "lifecycle.py", "BodyNode"))
    parts = [HEADER]
    for node in NODES:
        own = list(declared(HERE / f"{node}_node.py"))
        lifecycle = "BodyNode" in (HERE / f"{node}_node.py").read_text()
        rows = "".join(map(_row, (common if lifecycle else []) + own))
        parts.append(
            f"\n## {node}\n\n| parameter | type | default | range | meaning |\n|---|---|---|---|---|\n{rows}"
        )
    return "".join(parts)


def _row(parameter: Parameter) -> str:
    default = parameter.default
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    bounds = "" if parameter.bounds is None else f"{parameter.bounds[0]} to {parameter.bounds[1]}"
    kind = {bool: "bool", int: "integer", float: "double", str: "string"}[type(default)]
    text = parameter.description.replace("|", "\\|")
    shown = f"`{shown}`" if shown else "empty"
    return f"| `{parameter.name}` | {kind} | {shown} | {bounds or 'any'} | {text} |\n"


if __name__ == "__main__":
    print(reference(), end="")
